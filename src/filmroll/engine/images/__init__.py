"""From what a request says about its images to verified pixels: the same rooms for both engines.

`resolver` takes requests in turn and bounded (`gate`, `readers`), `resolve` reads every claim and compares it, which it
does not do again for a reference that is `remembered`. `content` makes references of images that come by URL.
"""
