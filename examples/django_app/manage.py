"""python manage.py migrate | runserver | test; the worker: pgq worker --app pgqueue.integrations.django_tasks:app."""

import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
execute_from_command_line(sys.argv)
