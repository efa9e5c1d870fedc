# The commands of daily work. Each is a line or a script that works without make as well.

.DEFAULT_GOAL := help
.PHONY: backup deploy drill faults fmt guarantees help image meter nightly policy push remove-example restore rollback run sbom \
  scan secrets soak sqlx test test-stack update

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build and start the service with a private PostgreSQL and Redis
	@scripts/run

test: ## Run every check of a change; no Docker needed
	@scripts/test

policy: ## Check dependencies, workflows, images, stacks, scripts, and for secrets
	@scripts/policy

test-stack: ## Run the tests of the image and the stacks; needs a Docker engine
	@scripts/test-stack

nightly: ## Run the checks that take hours: PARTS='stack faults', or all
	@scripts/nightly $(PARTS)

image: ## Build the image, labelled with version and revision
	@scripts/image build

scan: ## Look for known vulnerabilities in the image, with grype
	@scripts/image scan

sbom: ## List what the source and the image are made of, as SPDX and CycloneDX
	@scripts/sbom source
	@scripts/sbom image

push: ## Push the image to REGISTRY, by version and revision
	@scripts/image push

deploy: ## Put TAG into service on this machine, blue-green
	@deploy/release "$(TAG)"

rollback: ## Go back to the release before
	@deploy/release --rollback

meter: ## Measure what a deploy loses: METER=ADDRESS,PATH,PER_SECOND,SECONDS
	cargo test --quiet --test stack release::meter -- --ignored --exact --nocapture

faults: ## Break the production stack under load, and tell after how many seconds which alert fires; a quarter of an hour
	cargo test --locked --test stack faults::faults -- --ignored --exact --nocapture

secrets: ## Make the secrets of the production stack, once
	@deploy/make-secrets

backup: ## Back up the database of the production stack while it serves
	@deploy/backup

restore: ## Restore FILE=... into an empty production stack
	@deploy/restore $(if $(FILE),"$(FILE)")

drill: ## Prove that the newest backup, or FILE=..., can be restored
	@deploy/restore --drill $(if $(FILE),"$(FILE)")

remove-example: ## Remove the example domain, and all that names it
	@scripts/remove-example

fmt: ## Format the code
	cargo fmt

sqlx: ## Update .sqlx after a change of a query or a migration
	@scripts/sqlx-prepare

guarantees: ## Measure every guarantee in a release build
	@scripts/guarantees

soak: ## Run ten minutes of mixed faults under load
	@scripts/guarantees soak

update: ## Merge what is new in the template, up to TO=v1.2.3, into this project
	@scripts/update "$(TO)"

-include template/Makefile
