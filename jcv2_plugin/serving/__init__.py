"""A server of encoders and rerankers over HTTP: ``jcv2 serve``. It needs the extra ``serve``."""
