"""A Django service that tells browsers about its orders.

eventbus dev                        # in another terminal, in the same folder
python manage.py migrate
gunicorn shop.wsgi --bind 127.0.0.1:8000 --workers 2
python manage.py eventbus_relay     # publishes what views add to the outbox
"""

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    execute_from_command_line(sys.argv)
