"""The request side: wire types, authentication and handlers of the CBR v3 API. No rule lives here."""
