"""The chat endpoint of OpenAI's API on the embedded engine: messages with images in, words out.

For people who try a model by hand, and for clients that speak nothing else. A body becomes a request
(request.py), its images go into the engine's store and its messages become tokens (prompt.py), the
engine samples, and what it says becomes text (speech.py) and an answer, whole or in pieces (chat.py,
answers.py).
"""
