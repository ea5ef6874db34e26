"""Messages: the envelope and headers, as clients and brokers see them."""

from eventbus.messages.envelope import Envelope, read_payload
from eventbus.messages.headers import (
    check_headers,
    check_id,
    check_tags,
    decode_metadata,
    decode_tags,
    encode_metadata,
)
from eventbus.messages.message import (
    CLIENT_EVENT_PREFIX,
    HEADER_EVENT,
    HEADER_EXCEPT,
    HEADER_ID,
    HEADER_METADATA,
    HEADER_REASON,
    HEADER_TAGS,
    HEADER_VERSION,
    Message,
    Receipt,
    client_event_name,
    encode_data,
    new_id,
    utc_now,
    validate_event_name,
)
from eventbus.messages.receipts import gather_receipts

__all__ = [
    "CLIENT_EVENT_PREFIX",
    "HEADER_EVENT",
    "HEADER_EXCEPT",
    "HEADER_ID",
    "HEADER_METADATA",
    "HEADER_REASON",
    "HEADER_TAGS",
    "HEADER_VERSION",
    "Envelope",
    "Message",
    "Receipt",
    "check_headers",
    "check_id",
    "check_tags",
    "client_event_name",
    "decode_metadata",
    "decode_tags",
    "encode_data",
    "encode_metadata",
    "gather_receipts",
    "new_id",
    "read_payload",
    "utc_now",
    "validate_event_name",
]
