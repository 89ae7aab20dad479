"""FastAPI and Django under Gunicorn, with several workers that share the bundles: docs/service.md."""
