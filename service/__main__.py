"""`python -m service` is `prismrec-serve`."""

from service.cli import app

app(prog_name="prismrec-serve")
