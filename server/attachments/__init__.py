"""Attachments whose bytes this server keeps: registered, uploaded, checked, shown, told to the model, and swept.

attachments.py          what an assistant gets as its attachment_store, and the service works with; start reading here
opening.py              all of it put together
uploads.py              taking the bytes: how many, of what type, and what becomes of them where that is not as promised
rows.py                 what is known of attachments, in PostgreSQL (statements.py)
byte_store.py           what keeps the bytes, as the others see it
postgres_bytes.py       the bytes in PostgreSQL, piece by piece
s3_bytes.py             the bytes in an S3-compatible store (s3_client.py: requests, signed)
file_types.py           what a file is, by its bytes (file_names.py: and how its name is shown)
previews.py             small versions of pictures
preview_keys.py         who may see those without credentials
urls.py                 where pages find all that
for_the_model.py        what a model is told of attachments
sweep.py                forgetting those that nobody needs
refusals.py             what callers are told where something is not as it must be
settings.py             what an operator says about all this
"""
