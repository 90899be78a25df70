"""The conformance kit: drives an endpoint that speaks CBR v3 as real clients do, and says what they stumble over.

It knows the published document and the endpoint, and nothing of the server behind. The command is in cli/conformance.
"""
