"""Where images are kept: made canonical, written once under their sha256, read only if they still match it.

Imports only image and errors. Writers put, readers read; a reference is all that passes between them."""
