// Load folders with Transformers.js under Node and say what they answer: node answer.mjs FOLDER < questions.
//
// FOLDER holds the models. A question is {model, texts} or {model, dtype, ids, count, causal}: the ids of texts,
// or the tokens that follow ids when the most likely one is always taken. The answers are printed as one JSON
// list.
import { readFileSync } from 'node:fs';
import { AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, Tensor, env } from '@huggingface/transformers';

env.allowRemoteModels = false;
env.localModelPath = process.argv[2];
const say = console.log;
console.log = console.warn = () => {}; // Transformers.js talks; standard output is for the answers

async function encode({ model, texts }) {
  const tokenizer = await AutoTokenizer.from_pretrained(model);
  return texts.map((text) => tokenizer.encode(text));
}

async function generate({ model, dtype, ids, count, causal }) {
  const kind = causal ? AutoModelForCausalLM : AutoModelForSeq2SeqLM;
  const loaded = await kind.from_pretrained(model, { dtype, device: 'cpu' });
  const row = (values) => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
  const output = await loaded.generate({
    input_ids: row(ids),
    attention_mask: row(ids.map(() => 1)),
    max_new_tokens: count,
    do_sample: false,
    eos_token_id: -1,
  });
  await loaded.dispose();
  return Array.from(output.data, Number).slice(-count);
}

const answers = [];
for (const question of JSON.parse(readFileSync(0, 'utf8')))
  answers.push(await (question.texts ? encode(question) : generate(question)));
say(JSON.stringify(answers));
