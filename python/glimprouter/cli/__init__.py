"""The command line: ``glimprouter demo``, ``generate``, ``bench``.

It needs the extra ``demo`` (typer, rich, torch, transformers); :mod:`glimprouter.cli.main` says so
when something of it is missing.
"""
