# Commands for daily work. Each runs one command or script, which also works without make.

.DEFAULT_GOAL := help
.PHONY: backup deploy drill faults fmt guarantees help image meter nightly policy push remove-example restore rollback run sbom \
  scan secrets soak sqlx test test-stack update

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Start the service with a private PostgreSQL and Redis
	@scripts/run

test: ## Run every check of a change; no Docker needed
	@scripts/test

policy: ## Check dependencies, workflows, images, stacks and secrets
	@scripts/policy

test-stack: ## Test the image and the stacks; needs a Docker engine
	@scripts/test-stack

nightly: ## Run the checks that take hours: PARTS='stack faults', or all
	@scripts/nightly $(PARTS)

image: ## Build the image, labeled with version and revision
	@scripts/image build

scan: ## Scan the image for known vulnerabilities
	@scripts/image scan

sbom: ## Write SBOMs of source and image, as SPDX and CycloneDX
	@scripts/sbom source
	@scripts/sbom image

push: ## Push the image to REGISTRY, tagged by version and revision
	@scripts/image push

deploy: ## Deploy TAG on this machine, blue-green
	@deploy/release "$(TAG)"

rollback: ## Switch back to the previous release
	@deploy/release --rollback

meter: ## Measure lost requests: METER=ADDRESS,PATH,PER_SECOND,SECONDS
	cargo test --quiet --test stack release::meter -- --ignored --exact --nocapture

faults: ## Break the production stack and time its alerts; 15 minutes
	cargo test --locked --test stack faults::faults -- --ignored --exact --nocapture

secrets: ## Create the secrets of the production stack, once
	@deploy/make-secrets

backup: ## Back up the production database without downtime
	@deploy/backup

restore: ## Restore FILE=... into an empty production stack
	@deploy/restore $(if $(FILE),"$(FILE)")

drill: ## Prove that the newest backup, or FILE=..., can be restored
	@deploy/restore --drill $(if $(FILE),"$(FILE)")

remove-example: ## Remove the example domain
	@scripts/remove-example

fmt: ## Format the code
	cargo fmt

sqlx: ## Update .sqlx after changing a query or a migration
	@scripts/sqlx-prepare

guarantees: ## Measure every guarantee in a release build
	@scripts/guarantees

soak: ## Run mixed faults under load for ten minutes
	@scripts/guarantees soak

update: ## Merge template changes up to TO=v1.2.3 into this project
	@scripts/update "$(TO)"

-include template/Makefile
