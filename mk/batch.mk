# make batch: many checkpoints to many types, by kconv batch, which knows what is missing or out of date.
#
# $(OUT)/<folder name>-<TYPE>.gguf are file targets, too, for Makefiles that want one of them: such a file
# depends on the checkpoint's files and is a conversion of its own. If its proof fails or is interrupted it
# stays, but is given an old date: or make would take it for done the next time and say nothing.

MODELS ?=
QUANTS ?= q8_0 q4_0
OUT ?= dist
VERIFY ?= quick
KCONV_FLAGS ?=

define BATCH_USAGE
make batch converts checkpoint folders to GGUF files: only what is missing, or was made of other files, with
other options or by another version. It calls kconv batch, which reads each checkpoint once for all types.

  make batch MODELS="dir1 dir2" [QUANTS="q8_0 q4_0"] [OUT=dist] [VERIFY=quick] [KCONV_FLAGS="--threads 2"] [-j2]

  MODELS       checkpoint folders; their names, which name the files, must differ. make cannot handle names
               with spaces; make a link to such a folder.
  QUANTS       types, as for kconv to-gguf -q
  OUT          folder of the files: <folder name>-<TYPE>.gguf, each with its manifest
  VERIFY       how each file is proven: quick, full, or no; make fails where a proof does
  KCONV_FLAGS  more options for kconv to-gguf
  -jN          N checkpoints at a time

Lists with other options for each checkpoint, ONNX or checkpoints of the Hub: kconv batch --help.
endef

# Characters make, its wildcards or the shell would take for something else.
batch_refused := : % * ? [ ] ' " ; | & < > ( ) \ `
batch_upper = $(shell printf '%s' '$1' | tr '[:lower:]' '[:upper:]')
batch_lower = $(shell printf '%s' '$1' | tr '[:upper:]' '[:lower:]')
batch_strip = $(patsubst %/,%,$(patsubst %/,%,$1))
batch_kinds := *.json *.model *.txt *.safetensors *.bin *.jinja *.md LICENSE* LICENCE*
# Left out: dangling links and names with a space or a colon, which make would ask somebody to make.
batch_files = $(foreach file,$(wildcard $(addprefix $1/,$(batch_kinds))),\
  $(if $(findstring :,$(file)),,$(if $(realpath $(file)),$(file))))

batch_quoted = '$(subst ','\'',$1)'

.PHONY: batch batch-refused
batch: ## convert many: MODELS="dir1 dir2" QUANTS="q8_0 q4_0" OUT=dist; only what is missing or out of date

ifneq ($(strip $(MODELS)),)

$(foreach character,$(batch_refused),$(if $(findstring $(character),$(MODELS) $(QUANTS) $(OUT)),\
  $(error make batch: the character $(character) in MODELS, QUANTS or OUT has a special meaning in make; use a link with a simpler name)))
$(if $(strip $(OUT)),,$(error make batch: OUT is empty; give a folder, or . for this one))
$(if $(word 2,$(OUT)),$(error make batch: OUT=$(OUT) has a space; give one folder without spaces))
$(if $(strip $(QUANTS)),,$(error make batch: QUANTS is empty; set it, for example QUANTS="q8_0 q4_0"))

$(if $(filter quick full no,$(VERIFY)),,$(error make batch: VERIFY=$(VERIFY), expected quick, full or no))
batch_proof := $(if $(filter no,$(VERIFY)),--no-verify,--verify $(VERIFY))
batch_out := $(call batch_strip,$(strip $(patsubst ~/%,$(HOME)/%,$(OUT))))
batch_models := $(sort $(foreach model,$(patsubst ~/%,$(HOME)/%,$(MODELS)),$(call batch_strip,$(model))))
batch_names := $(notdir $(batch_models))
batch_types := $(sort $(call batch_upper,$(QUANTS)))

$(foreach name,$(batch_names),$(if $(filter-out . ..,$(name)),,\
  $(error make batch: MODELS="$(MODELS)": give each folder by name; $(name) alone gives no file name)))
$(foreach name,$(sort $(batch_names)),$(if $(word 2,$(filter $(name),$(batch_names))),\
  $(error make batch: several MODELS are called $(name): $(filter $(name) %/$(name),$(batch_models)); \
  their files would have the same name; rename or link one, or give each its own OUT)))

# $1 folder, $2 type in upper case. A folder without config.json is always given to kconv, which says what
# is wrong with it. The installation is no reason to convert again (after the bar).
define batch_rule
.PRECIOUS: $(batch_out)/$(notdir $1)-$2.gguf
$(batch_out)/$(notdir $1)-$2.gguf: $(call batch_files,$1) $(if $(wildcard $1/config.json),,batch-refused) | $(READY)
	$$(info kconv to-gguf -q $(call batch_lower,$2) -o $$@ $(batch_proof) $(KCONV_FLAGS) -- $1)@trap : INT TERM HUP; \
	$(BIN)/kconv to-gguf -q $(call batch_lower,$2) -o '$$@' --force $(batch_proof) $(KCONV_FLAGS) -- '$1'; \
	code=$$$$?; case $$$$code in 1|130) touch -c -t 198001010000 '$$@';; esac; exit $$$$code
endef

$(foreach model,$(batch_models),$(foreach type,$(batch_types),$(eval $(call batch_rule,$(model),$(type)))))

# -j alone is as many as there are processors. What lies in OUT is overwritten where it is another's.
batch_jobs = $(or $(patsubst -j%,%,$(filter -j%,$(MAKEFLAGS))),$(if $(filter -j,$(MAKEFLAGS)),$(shell nproc),1))

batch: | $(READY)
	@{ printf '%s\n' '[defaults]' $(if $(filter no,$(VERIFY)),'no-verify = true','verify = "$(VERIFY)"') \
	  "output = '$(batch_out)'" 'types = [' $(foreach type,$(call batch_lower,$(QUANTS)),"'$(type)',") ']'; \
	printf '[[jobs]]\nsource = %s\n' $(foreach model,$(batch_models),"'$(model)'"); } | \
	$(BIN)/kconv batch - --force --jobs $(batch_jobs) --journal '$(batch_out)/.kconv-batch.jsonl' \
	  --options $(call batch_quoted,$(KCONV_FLAGS))

else ifneq ($(filter batch,$(MAKECMDGOALS)),)
$(info $(BATCH_USAGE))
$(error make batch: MODELS is empty)
endif
