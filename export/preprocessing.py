def beside(path):
    return None
