"""``glimprouter serve``: a pair behind an endpoint that OpenAI's clients know.

Needs the extra ``serve``; torch is imported when a pair is loaded.
"""
