"""Load tests of a server that speaks OpenAI's protocol."""
