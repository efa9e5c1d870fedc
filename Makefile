# The commands of daily work. Each is a line or a script that works without make as well.

.DEFAULT_GOAL := help
.PHONY: bench fmt help image run secrets sqlx test test-stack

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile

run: ## Build and start the service with a private PostgreSQL and Redis
	@scripts/run

test: ## Run every check of a change; no Docker needed
	@scripts/test

test-stack: ## Run the tests of the image and the stacks; needs a Docker engine
	@scripts/test-stack

image: ## Build the image, labelled with version and revision
	@scripts/build-image

secrets: ## Make the secrets of the production stack, once
	@deploy/make-secrets

fmt: ## Format the code
	cargo fmt

sqlx: ## Update .sqlx after a change of a query or a migration
	@scripts/sqlx-prepare

bench: ## Measure requests per second
	cargo bench --bench http
