"""How each line of models sees: layout arithmetic, pixel recipe, placeholder tokens, forward policy.

One file a family. A checkpoint's own files give the numbers; writers ask for layouts, readers for pixels."""
