"""Tokens that people think up are refused, random ones are not."""

from __future__ import annotations

import base64
import random
import string

import pytest

from lmsmith.server.token_strength import weakness

MADE_UP = """
a secret xxxxxxxxxxxxxxx aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 1234567890123456
abcdefghijklmnopqrst abcabcabcabcabcabc passwordpassword zyxwvutsrqponmlkj
00000000000000000000000 qwertyuiopasdfgh qwertzuiopasdfgh azertyuiopqsdfgh 1q2w3e4r5t6y7u8i
qazwsxedcrfvtgbyhn asdfghjklqwertyuiop !QAZ@WSX#EDC$RFV 1234567890qwertyuiop
1qaz2wsx3edc4rfv5tgb6yhn7ujm changeme-changeme passwordpassword1 your-secret-token
YourSecretTokenHere my-secret-token-123 MySecretToken2026ForLmsmith
MySuperSecretTokenIsVerySecret123 replace-me-with-a-token INSERT_TOKEN_HERE_PLEASE
sk-1234567890abcdef openai-api-key-secret test-token-test-token lmsmith-lmsmith-lmsmith
admin-admin-admin-admin hunter2hunter2hunter2 Passw0rd!Passw0rd! 2026-11-29-12:00:00
20261129120000000 29.11.2026-29.11.2026 Monday-29-November-2026-20:21:33 https://example.com/
https://www.google.com/ http://127.0.0.1:8000 http://192.168.178.20:8080/v1
https://chat.example.org:8443/v1/models johnsmith@example.com JohnSmith19801980 3141592653589793
31415926535897932384626433832795 2718281828459045 1123581321345589144 16807282475249162265
pi3.14159265358979323846264338327950288 0123456789abcdef deadbeefdeadbeef
0123456789ABCDEFabcdef0123456789 a1b2c3d4e5f6g7h8 AbCdEfGhIjKlMnOpQrStUvWxYz0123456789
00000000-0000-0000-0000-000000000000 thequickbrownfoxjumpsoverthelazydog
TheQuickBrownFoxJumpsOverTheLazyDog tobeornottobethatisthequestion
correct-horse-battery-staple lorem-ipsum-dolor-sit-amet
Summer2026Summer2026Summer2026 CompanyName-Prod-Token-2026-11 AdminAdmin1234AdminAdmin1234
Qwertyuiop1234567890Asdfghjkl aB1aB1aB1aB1aB1aB1aB1 привет-привет-привет
密码密码密码密码密码密码密码密码
"""


@pytest.mark.parametrize("token", [*MADE_UP.split(), "0" * 1000, " " * 40, "password " * 20])
def test_tokens_that_can_be_guessed(token: str) -> None:
    assert weakness(token)


def test_random_tokens_are_strong() -> None:
    draws = random.Random(0)
    assert not weakness("Pq7-vN2xT9_kLw4ZsB")
    assert not weakness("Zk93jdU2lqPw7xTb4mVn")
    characters = string.ascii_letters + string.digits
    for _ in range(40):
        shortest = "".join(draws.choices(characters, k=16))
        assert not weakness(shortest), shortest
    for _ in range(15):
        url = base64.urlsafe_b64encode(draws.randbytes(24)).decode()
        assert not weakness(url), url
        assert not weakness(draws.randbytes(16).hex())
