"""`python -m ouroboros_cli` is `ouro`."""

from ouroboros_cli.app import app

app()
