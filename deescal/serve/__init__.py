"""Base and tuned models behind one OpenAI-compatible endpoint.

`api.build_api` makes the ASGI app out of a backend that generates; `guard` stands before it (keys, limits, log); what a
request may say is in `requests` and `rehearse`; `endpoint` puts it all, with the engine, into one replica of Ray Serve.
"""
