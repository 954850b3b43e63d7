"""Run jobs: claim, execute, settle, renew leases, drain."""
