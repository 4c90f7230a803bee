"""A plugin that ends the process when it is imported."""

raise SystemExit("acme_exit wants to stop")
