"""Settings for development. EVENTBUS could hold what the environment does not."""

import os
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).parent.parent
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "development only")
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = ["eventbus.integrations.django", "shop"]
MIDDLEWARE = ["eventbus.integrations.django.middleware.connection"]
ROOT_URLCONF = "shop.urls"
DATABASES: dict[str, Any] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("SHOP_DATABASE", BASE_DIR / "shop.db"),
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
EVENTBUS: dict[str, Any] = {"BROADCAST_PUBLISH_TIMEOUT": 5}
