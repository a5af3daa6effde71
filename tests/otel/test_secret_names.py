"""Names of secrets as applications spell them, and the places in which they stand."""

from __future__ import annotations

from typing import Any

import pytest

from apscheduler_telemetry.core.safe_repr import is_secret_name, safe_repr, safe_repr_call

SECRETS = [
    *("ssh_key", "SSHKey", "cred", "db_cred", "userpw", "rootPwd", "conn_str", "connStr"),
    *("license_key", "licence-key", "signature", "X-Hub-Signature", "totp", "oauth", "hmac"),
    *("DATABASE_URL", "database_uri", "dbUrl", "REDIS_URL", "broker_url", "webhook_url"),
    *("csrf", "xsrf", "pem", "passwort", "clientsecret", "tokens", "token_id"),
    *(
        "ｐａｓｓｗｏｒｄ",
        "ＡＰＩ＿ＫＥＹ",
        "𝐩𝐚𝐬𝐬𝐰𝐨𝐫𝐝",
        "--password",
    ),
]
OTHERS = [
    *("max_tokens", "maxTokens", "token_count", "n_tokens", "password_length", "MIN_PASSWORD"),
    *("secret_size", "secretary", "secretaries", "tokenizer", "tokenise", "pin_count"),
    *("keyboard", "primary_key", "callback_url", "image_uri", "url", "authority", "spinner"),
    *("naïve", "ключ"),
]


class TestNames:
    @pytest.mark.parametrize("name", SECRETS, ids=ascii)
    def test_names_of_secrets(self, name: Any) -> None:
        """Words and parts of names are recognised in all spellings."""
        assert is_secret_name(name)
        assert "hunter2" not in safe_repr({name: "hunter2"})

    @pytest.mark.parametrize("name", OTHERS, ids=ascii)
    def test_other_names(self, name: Any) -> None:
        """Numbers, and words that only look alike, are not masked."""
        assert not is_secret_name(name)
        assert safe_repr({name: "plain"}) == f"{{{name!r}: 'plain'}}"


class TestPlaces:
    """Where a name and its value can stand."""

    @pytest.mark.parametrize("key", [("db", "password"), (b"api", b"token"), (1, "token")])
    def test_tuple_as_a_key(self, key: Any) -> None:
        """A part of it is the name of a secret."""
        assert safe_repr({key: "hunter2"}) == f"{{{key!r}: ***}}"

    @pytest.mark.parametrize("key", [("db", "user"), (1, None), (), (("password",),)])
    def test_other_tuples_as_keys(self, key: Any) -> None:
        """None of its parts is."""
        assert safe_repr({key: "plain"}) == f"{{{key!r}: 'plain'}}"

    def test_options_of_a_command(self) -> None:
        """The value follows in the next item, or in the same one."""
        command = ["mysql", "--password", "hunter2", "-u", "root", "--api-key=hunter2", "db"]
        text = "['mysql', '--password', ***, '-u', 'root', '--api-key=***', 'db']"
        assert safe_repr(command) == text
        assert safe_repr(tuple(command)) == f"({text[1:-1]})"
        assert safe_repr_call([command], {}) == text

    def test_options_without_a_value(self) -> None:
        """The next option is not the value of the one before."""
        assert safe_repr(["--password=hunter2", "db"]) == "['--password=***', 'db']"
        command = ["git", "--auth", "--user", "ann", "--password-length=8", "--token"]
        assert safe_repr(command) == repr(command)

    def test_words_that_are_no_options(self) -> None:
        """Items without a dash are no names, except in pairs."""
        for items in (["token", "a", "b"], ["my", "password", "is"], [("--token",)], ["-", "a", 1]):
            assert safe_repr(items) == repr(items)

    @pytest.mark.parametrize("key", ["name", "key"])
    def test_dictionary_of_a_name_and_a_value(self, key: str) -> None:
        """As in headers, environments of containers and forms."""
        for items in ({key: "password", "value": "hunter2"}, {"value": "hunter2", key: "password"}):
            assert "hunter2" not in safe_repr(items)
            assert "'value': ***" in safe_repr([items])
        plain = {key: "user", "value": "ann"}
        assert safe_repr(plain) == repr(plain)

    def test_name_without_a_value(self) -> None:
        """A dictionary that only contains such a name is written as it is."""
        plain = {"name": "password", "type": "text", "value of": 1, 2: "value"}
        assert safe_repr(plain) == repr(plain)
