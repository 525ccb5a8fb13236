def add_page(app):
    return app
