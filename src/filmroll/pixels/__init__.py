"""From canonical bytes to pictures to patches, as plain numpy: no torch.

Imports only image and errors. Families call it with their numbers; nothing here knows a family."""
