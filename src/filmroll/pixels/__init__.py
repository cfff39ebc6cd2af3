"""From canonical bytes to pictures to patches, as plain numpy: no torch.

Imports image, errors and the store's reading of headers. Families call it with their numbers;
nothing here knows a family.
"""
