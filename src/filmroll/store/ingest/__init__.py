"""How whatever is put in becomes canonical: from where it is taken, and what is made of it."""
