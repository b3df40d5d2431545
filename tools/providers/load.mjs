// Which graphs onnxruntime-web's WASM loads: node load.mjs LIBRARY BUILD GRAPH... prints JSON. LIBRARY is its folder dist.
import { readFileSync } from 'node:fs';
import path from 'node:path';

const [library, build, ...graphs] = process.argv.slice(2);
const ort = await import(path.resolve(library, build));
ort.env.wasm.numThreads = 1;
ort.env.logLevel = 'error';
const answers = {};
for (const graph of graphs)
  try {
    const data = `${graph}_data`, name = path.basename(data);
    await ort.InferenceSession.create(readFileSync(graph), {
      executionProviders: ['wasm'],
      externalData: [{ path: name, data: readFileSync(data) }],
    });
    answers[graph] = null;
  } catch (error) {
    answers[graph] = String(error.message).slice(0, 300);
  }
console.log(JSON.stringify(answers));
process.exit(0);
