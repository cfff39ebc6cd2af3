"""What people look at: the report of a run, and the tables of `filmroll store`.

`report` reads a run's folder (`records`), works out what to say (`summary`), draws it (`plots`), lays
out rollouts with their images (`contact_sheet`), and fills the page in `static/`. Nothing here writes
anything but that page, and nothing here needs torch."""
