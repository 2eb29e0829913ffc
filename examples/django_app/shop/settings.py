import os

import django
from psycopg.conninfo import conninfo_to_dict

facts = conninfo_to_dict(os.environ["PGQUEUE_DSN"])

SECRET_KEY = "of an example"
DEBUG = True
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "shop.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": facts["dbname"],
        "USER": facts.get("user", ""),
        "PASSWORD": facts.get("password", ""),
        "HOST": facts.get("host", ""),
        "PORT": facts.get("port", ""),
    }
}
INSTALLED_APPS = [
    *([] if django.VERSION >= (6,) else ["django_tasks"]),  # Django 6 has them built in
    "pgqueue.integrations.django.PgqueueConfig",  # manage.py migrate makes the queue's schema, too
    "shop",
]
TASKS = {
    "default": {
        "BACKEND": "pgqueue.integrations.django_tasks.PgqueueBackend",
        "QUEUES": [],  # any
        "OPTIONS": {"timeout": "1m"},
    }
}
