"""The `ouro` command."""
