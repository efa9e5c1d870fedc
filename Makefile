# The commands of daily work. Each is a line or a script that works without make as well.

.DEFAULT_GOAL := help
.PHONY: bench fmt help run sqlx test

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s%s\n", $$1, $$2 }' Makefile

run: ## Build and start the service with a private PostgreSQL and Redis
	@scripts/run

test: ## Run every check of a change; no Docker needed
	@scripts/test

fmt: ## Format the code
	cargo fmt

sqlx: ## Update .sqlx after a change of a query or a migration
	@scripts/sqlx-prepare

bench: ## Measure requests per second
	cargo bench --bench http
