from __future__ import annotations

import datetime as dt
import itertools
import math
from pathlib import Path

import pytest

from rondevud import config
from rondevud.config_text import find_lines
from rondevud.errors import ConfigError
from rondevud.records import Durability

CONNECTION = '[[connection]]\nusername = "alice"\nfqn = "com.example.chat@1.0.0"\n'
SERVICE = '[[service]]\nusername = "alice"\nfqn = "com.example.chat@1.0.0"\n'
SERVER = "[rendezvous]\nenabled = true\n"
UUID = "5f0c1b9e-7f3f-4a77-9a44-2f9d4fbd9c1d"


def refusal(text: str) -> list[str]:
    """What is wrong with a text, line by line."""
    with pytest.raises(ConfigError) as refused:
        config.parse(text, "c.toml")
    return str(refused.value).splitlines()


class TestDefaults:
    def test_without_a_file_the_defaults_hold(self):
        found = config.load(None)
        assert found.signalling.url is None
        assert found.transport.ice_servers == ()
        assert found.daemon.socket_mode == 0o600
        assert found.daemon.max_message == 16 * 1024 * 1024
        assert not found.rendezvous.enabled

    def test_services_have_the_defaults_of_the_design(self):
        (service,) = config.parse(SERVER + SERVICE, "x").services
        assert (service.ttl, service.ttl_refresh_margin, service.pool_size, service.polling_interval) == (
            300,
            0.2,
            1,
            2,
        )
        assert (service.max_connections, service.max_sessions, service.max_channels) == (100, 1000, 64)
        assert service.session_expiry == 7 * 86400
        assert (service.public, service.peer, service.metadata) == (False, "auto", None)
        assert service.name == "alice/com.example.chat@1.0.0"

    def test_reconnecting_has_the_defaults_of_the_design(self):
        found = config.resolve_reconnect(config.ReconnectConfig(), in_file=False)
        assert (found.attempts_until_contact, found.attempts) == (10, None)
        assert (found.backoff_base, found.backoff_max, found.jitter) == (1, 30, 0.2)
        assert (found.connection_timeout, found.heartbeat) == (30, 1)

    def test_a_connection_of_the_file_never_gives_up_unless_told(self):
        found = config.resolve_reconnect(config.ReconnectConfig(), in_file=True)
        assert (found.attempts_until_contact, found.attempts) == (None, None)
        own = config.connection_options({"reconnect": {"max_attempts": 3}}).reconnect
        found = config.resolve_reconnect(config.ReconnectConfig(), own, in_file=True)
        assert (found.attempts_until_contact, found.attempts) == (3, 3)

    def test_unlimited_attempts_over_the_socket_hold_before_the_first_contact_too(self):
        own = config.connection_options({"reconnect": {"max_attempts": 0}}).reconnect
        assert config.resolve_reconnect(config.ReconnectConfig(), own, in_file=False).attempts_until_contact is None


class TestChannelOptions:
    @pytest.mark.parametrize(
        ("key", "value"), [("ordered", False), ("max_retransmits", 0), ("max_packet_life_time", 65_535)]
    )
    def test_unreliable_channels_are_taken(self, key, value):
        assert getattr(config.channel_options({key: value}), key) == value

    @pytest.mark.parametrize("key", ["max_retransmits", "max_packet_life_time"])
    @pytest.mark.parametrize("value", [-1, 65_536, 1.5, "1", True])
    def test_limits_that_no_data_channel_can_have_are_refused(self, key, value):
        with pytest.raises(ConfigError, match=f"options: {key}: expected"):
            config.channel_options({key: value})

    def test_two_limits_of_one_channel_are_refused(self):
        with pytest.raises(ConfigError, match="expected at most one of"):
            config.channel_options({"max_retransmits": 0, "max_packet_life_time": 0})

    def test_reserved_labels_are_for_plain_peers_only(self):
        channels = {"channels": ["rondevu-service"]}
        assert config.connection_options({**channels, "peer": "plain"}).channels[0].label == "rondevu-service"
        with pytest.raises(ConfigError, match='labels that begin with "rondevu" are reserved'):
            config.connection_options(channels)


class TestQueueLimits:
    def test_a_disk_link_is_limited_in_bytes_only_and_rejects(self):
        assert config.queue_limits(config.QueueConfig()) == config.Limits(None, 256 * 1024 * 1024, None, "reject")

    @pytest.mark.parametrize("kind", [{"durability": Durability.MEMORY}, {"plain": True}])
    def test_memory_and_plain_peers_have_the_queue_of_the_seed(self, kind):
        found = config.queue_limits(config.QueueConfig(), **kind)
        assert (found.max_count, found.max_age, found.overflow) == (1000, 60.0, "drop_oldest")

    def test_durability_of_the_tables_counts_when_the_channel_names_none(self):
        assert config.queue_limits(config.channel_options({"durability": "memory"})).max_count == 1000

    def test_the_innermost_table_wins_key_by_key(self):
        whole = config.channel_options({"max_queue_size": 1, "max_queue_bytes": 2, "overflow": "block"})
        connection = config.channel_options({"max_queue_size": 3, "max_message_age": 4})
        channel = config.channel_options({"max_queue_size": "unlimited"})
        assert config.queue_limits(whole, connection, channel) == config.Limits(None, 2, 4.0, "block")

    def test_a_lifted_limit_is_not_the_same_as_one_that_was_not_set(self):
        lifted = config.channel_options({"durability": "memory", "max_message_age": 0, "max_queue_size": "unlimited"})
        found = config.queue_limits(lifted)
        assert (found.max_count, found.max_age) == (None, None)

    def test_setting_a_key_to_its_default_overrides_the_table_above(self):
        above = config.channel_options({"inbox_size": 5, "durability": "memory"})
        own = config.channel_options({"inbox_size": 10_000, "durability": "disk"})
        assert config.inbox_limits(above, own).max_count == 10_000
        assert config.queue_limits(above, own).overflow == "reject"

    def test_the_inbox_is_limited_in_messages_only(self):
        assert config.inbox_limits(config.QueueConfig()) == config.InboxLimits(10_000, None, None)

    def test_channel_tables_of_the_file_override_those_of_the_connection(self):
        text = SERVER + CONNECTION + 'channels = [{label = "a", max_queue_size = 7}]\nqueue = {max_queue_size = 8}\n'
        (connection,) = config.parse(text, "x").connections
        (channel,) = connection.channels
        assert config.queue_limits(config.QueueConfig(), connection.queue, channel).max_count == 7


class TestTheStore:
    def test_it_is_not_limited_unless_configured(self):
        assert config.parse("", "x").queue.store_limit is None
        assert config.parse('[queue]\nmax_store_bytes = "unlimited"\n', "x").queue.store_limit is None
        assert config.parse("[queue]\nmax_store_bytes = 5\n", "x").queue.store_limit == 5

    def test_its_limit_stands_in_the_table_for_all_only(self):
        with pytest.raises(ConfigError, match="max_store_bytes"):
            config.connection_options({"queue": {"max_store_bytes": 5}})
        with pytest.raises(ConfigError, match="max_store_bytes"):
            config.channel_options({"max_store_bytes": 5})


class TestValues:
    @pytest.mark.parametrize("value", [0, "unlimited", math.inf])
    def test_zero_and_unlimited_lift_a_limit(self, value):
        options = config.service_options({"max_sessions": value, "session_expiry": value})
        assert (options.max_sessions, options.session_expiry) == (math.inf, math.inf)

    @pytest.mark.parametrize("value", [-1, 1.5, True, False, "many", "0", None, [], math.nan, -math.inf])
    def test_a_count_limit_is_nothing_else(self, value):
        with pytest.raises(ConfigError, match=r'options: max_sessions: expected a whole number .* "unlimited"'):
            config.service_options({"max_sessions": value})

    @pytest.mark.parametrize("value", [-1, True, "7 days", None, math.nan, -math.inf])
    def test_a_limit_in_seconds_is_nothing_else(self, value):
        with pytest.raises(ConfigError, match=r"options: session_expiry: expected a positive number of seconds"):
            config.service_options({"session_expiry": value})

    @pytest.mark.parametrize("value", [0, -1, True, "30", math.inf, math.nan])
    def test_a_duration_that_is_no_limit_is_positive_and_finite(self, value):
        with pytest.raises(ConfigError, match="options: ttl: expected a positive number of seconds"):
            config.service_options({"ttl": value})

    @pytest.mark.parametrize("name", ["alice", "a-1", "0--0", "a" * 32])
    def test_user_names_of_the_servers_are_taken(self, name):
        assert config.service_declaration({"username": name, "fqn": "a.b@0.0.1"}).username == name

    @pytest.mark.parametrize("name", ["al", "a" * 33, "Alice", "-alice", "alice-", "al_ice", "alice\n", "", "ålice"])
    def test_other_user_names_are_refused(self, name):
        with pytest.raises(ConfigError, match="username: expected a user name: 3 to 32"):
            config.service_declaration({"username": name, "fqn": "a.b@0.0.1"})

    @pytest.mark.parametrize(
        "fqn", ["com.example.chat@1.0.0", "a.b@01.2.3-beta.1", "a-b.c--d@1.0.0-", "a." + "b" * 126 + "@1.0.0"]
    )
    def test_service_names_of_the_servers_are_taken(self, fqn):
        if fqn.endswith("-"):
            with pytest.raises(ConfigError):
                config.service_declaration({"username": "alice", "fqn": fqn})
        else:
            assert config.service_declaration({"username": "alice", "fqn": fqn}).fqn == fqn

    @pytest.mark.parametrize(
        "fqn",
        [
            "chat@1.0.0",
            "com.example.chat",
            "com.example.chat@1.0",
            "com.example.chat@v1.0.0",
            "com.example.chat@1.0.0+5",
            "com.example.chat@1.0.0@2.0.0",
            "Com.example.chat@1.0.0",
            "com..chat@1.0.0",
            "com.-chat@1.0.0",
            "com.chat-@1.0.0",
            "a." + "b" * 127 + "@1.0.0",
            "com.example.chat@1.0.0\n",
        ],
    )
    def test_other_service_names_are_refused(self, fqn):
        with pytest.raises(ConfigError, match=r"fqn: expected NAME@VERSION such as"):
            config.service_declaration({"username": "alice", "fqn": fqn})

    @pytest.mark.parametrize("label", ["", "x" * 256, "ü" * 128, "\ud800", 5, b"main"])
    def test_labels_are_text_of_1_to_255_bytes(self, label):
        with pytest.raises(ConfigError, match=r"channels\[0\]"):
            config.connection_options({"channels": [{"label": label}]})
        assert config.connection_options({"channels": ["x" * 255]}).channels[0].label == "x" * 255

    def test_labels_of_the_protocol_are_reserved(self):
        with pytest.raises(ConfigError, match="reserved"):
            config.connection_options({"channels": ["rondevu-service"]})

    @pytest.mark.parametrize("mode", ["0660", "660", "0600"])
    def test_a_socket_mode_is_octal_text(self, mode):
        assert config.parse(f'[daemon]\nsocket_mode = "{mode}"', "x").daemon.socket_mode == int(mode, 8)

    @pytest.mark.parametrize("mode", ["660", "0o660", '"0o660"', '"rw"', '"01777"', '"888"'])
    def test_other_socket_modes_are_refused(self, mode):
        (line,) = refusal(f"[daemon]\nsocket_mode = {mode}")
        assert line.startswith('c.toml:2: daemon.socket_mode: expected the mode as octal text, such as "0660", found ')

    def test_paths_are_absolute_or_in_the_home_directory(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/x")
        found = config.parse('[daemon]\nstate_dir = "~/state"\nsocket = "/s"', "x").daemon
        assert (found.state_dir, found.socket) == (Path("/home/x/state"), Path("/s"))
        assert "expected an absolute path" in refusal('[daemon]\nstate_dir = "state"')[0]

    @pytest.mark.parametrize("url", ["ftp://a", "a.example.org", "http://", "https://a/?q=1", "http://a b"])
    def test_a_signalling_url_is_http(self, url):
        assert "signalling.url: expected a URL such as https://" in refusal(f'[signalling]\nurl = "{url}"')[0]

    def test_a_slash_behind_a_url_does_not_count(self):
        assert (
            config.parse('[signalling]\nurl = "https://a.example/api/"', "x").signalling.url == "https://a.example/api"
        )

    @pytest.mark.parametrize("listen", ["3000", ":3000", "localhost", "a:b", "a:65536"])
    def test_listen_is_host_and_port(self, listen):
        assert "expected HOST:PORT" in refusal(f'[rendezvous]\nlisten = "{listen}"')[0]

    def test_ice_servers_are_urls_or_tables(self):
        servers = '["stun:a:1", {urls = "turn:b:2", username = "u", credential = "c"}, {urls = ["stun:a", "stun:b"]}]'
        found = config.parse(f"[transport]\nice_servers = {servers}", "x").transport.ice_servers
        assert [server.urls for server in found] == [("stun:a:1",), ("turn:b:2",), ("stun:a", "stun:b")]

    def test_a_turn_server_needs_credentials(self):
        assert refusal('[transport]\nice_servers = ["turn:b:2"]') == [
            'c.toml:2: transport.ice_servers[0]: a turn: server needs "username" and "credential"'
        ]

    def test_metadata_is_whatever_json_can_carry(self):
        data = {"a": [1, None, {"b": "c"}]}
        assert config.service_options({"metadata": data}).metadata == data
        for value in (dt.date(2000, 1, 1), math.nan, b"x", {"a": {1, 2}}):
            with pytest.raises(ConfigError, match="metadata: expected a value that JSON can carry"):
                config.service_options({"metadata": value})

    def test_models_cannot_be_changed(self):
        with pytest.raises(ValueError, match="frozen"):
            config.Config().daemon.log_level = "debug"


class TestNotInThisVersion:
    @pytest.mark.parametrize(
        ("section", "line", "key", "what"),
        [
            ("[signalling]", 'protocol = "rpc"', "signalling.protocol", '"rpc"'),
            ("[transport]", "port_range = [1, 2]", "transport.port_range", "a range of ports"),
            ("[rendezvous]", 'store = "postgresql://h/d"', "rendezvous.store", "a postgresql: store"),
            ("[queue]", "inbox_max_age = 60", "queue.inbox_max_age", "an age limit of the inbox"),
        ],
    )
    def test_values_of_later_versions_are_refused_by_name(self, section, line, key, what):
        assert f"c.toml:2: {key}: {what} is not in this version" in refusal(f"{section}\n{line}\n")

    @pytest.mark.parametrize("place", ["unix:/run/rondevud/metrics.sock", "127.0.0.1:9464", "127.1.2.3:1", "[::1]:0"])
    def test_metrics_are_served_on_a_socket_or_a_loopback_address(self, place):
        assert config.parse(f'[metrics]\nlisten = "{place}"\n', "c").metrics.listen == place

    @pytest.mark.parametrize(
        ("place", "why"),
        [
            ("0.0.0.0:9464", "0.0.0.0 can be reached from outside"),
            ("[::]:9464", ":: can be reached from outside"),
            ("192.0.2.7:9464", "192.0.2.7 can be reached from outside"),
            ("localhost:9464", "a loopback address with a port"),
            ("127.0.0.1", "a loopback address with a port"),
            ("127.0.0.1:99999", "a loopback address with a port"),
            ("unix:metrics.sock", 'expected "unix:/PATH"'),
            ("unix:/", 'expected "unix:/PATH"'),
        ],
    )
    def test_metrics_are_served_nowhere_else(self, place, why):
        (line,) = refusal(f'[metrics]\nlisten = "{place}"\n')
        assert line.startswith("c.toml:2: metrics.listen: ")
        assert why in line

    def test_an_age_limit_of_the_inbox_is_refused_wherever_it_is_given(self):
        queue = "queue = { inbox_max_age = 0.5 }"
        what = "inbox_max_age: an age limit of the inbox is not in this version"
        assert f"c.toml:2: service[0].queue.{what}" in refusal(f"[[service]]\n{queue}\n")
        assert f"c.toml:2: connection[0].queue.{what}" in refusal(f"[[connection]]\n{queue}\n")
        with pytest.raises(ConfigError, match=f"options: {what}"):
            config.channel_options({"inbox_max_age": 60})

    @pytest.mark.parametrize("value", [0, 0.0, "unlimited"])
    def test_saying_that_the_inbox_has_no_age_limit_is_fine(self, value):
        assert config.inbox_limits(config.channel_options({"inbox_max_age": value})).max_age is None

    def test_an_age_limit_that_is_none_is_refused_as_elsewhere(self):
        with pytest.raises(ConfigError, match=r"options: inbox_max_age: expected a positive number of seconds.*soon"):
            config.channel_options({"inbox_max_age": "soon"})

    def test_saying_that_a_channel_is_ordered_is_fine(self):
        assert config.channel_options({"ordered": True}).ordered


class TestDeclarations:
    def test_unnamed_connections_are_named_after_their_target(self):
        text = SERVER + CONNECTION + f'[[connection]]\nuuid = "{UUID.upper()}"\n'
        names = [connection.name for connection in config.parse(text, "x").connections]
        assert names == ["alice/com.example.chat@1.0.0", f"uuid/{UUID}"]

    @pytest.mark.parametrize(
        "target",
        [
            {},
            {"username": "alice"},
            {"fqn": "a.b@1.0.0"},
            {"uuid": UUID, "username": "alice"},
            {"uuid": UUID, "username": "alice", "fqn": "a.b@1.0.0"},
        ],
    )
    def test_a_connection_has_exactly_one_kind_of_target(self, target):
        with pytest.raises(ConfigError, match='connection: expected either "username" and "fqn", or "uuid"'):
            config.connection_declaration({"name": "x", **target})

    @pytest.mark.parametrize("name", ["conn-0123456789abcdef", "service:alice/a.b@1.0.0", "", "a\nb", "x" * 256])
    def test_names_that_could_be_taken_for_something_else_are_refused(self, name):
        with pytest.raises(ConfigError, match="connection: name: expected a name"):
            config.connection_declaration({"name": name, "uuid": UUID})

    @pytest.mark.parametrize("name", ["conn-0123456789abcde", "conn-0123456789abcdeg", "alice chat", "ü"])
    def test_other_names_are_taken(self, name):
        assert config.connection_declaration({"name": name, "uuid": UUID}).name == name

    def test_two_connections_of_one_name_are_refused(self):
        assert refusal(SERVER + CONNECTION + CONNECTION) == [
            'c.toml:6: connection[1]: "alice/com.example.chat@1.0.0" stands in the file twice, first as connection[0]'
        ]

    def test_two_names_for_one_service_are_two_connections(self):
        text = SERVER + CONNECTION + 'name = "a"\n' + CONNECTION + 'name = "b"\n'
        assert len(config.parse(text, "x").connections) == 2

    def test_one_service_twice_is_refused(self):
        assert "service[1]" in refusal(SERVER + SERVICE + SERVICE)[0]

    def test_one_label_twice_is_refused(self):
        (line,) = refusal(SERVER + CONNECTION + 'channels = ["main", {label = "main"}]')
        assert line == 'c.toml:6: connection[0].channels: the label "main" stands here twice'

    def test_declarations_without_a_signalling_server_are_refused(self):
        (line,) = refusal(SERVICE)
        assert line.startswith("c.toml: signalling.url: missing: services and connections need a signalling server")
        assert config.parse('[signalling]\nurl = "http://127.0.0.1:3000"\n' + SERVICE, "x").services


class TestMistakes:
    def test_all_mistakes_are_told_in_the_order_of_the_file(self):
        text = """
[queue]
max_queue_size = -1

[daemon]
log_level = "chatty"
sokket = "/run/x"

[[connection]]
username = "alice"
fqn = "com.example.chat@1.0.0"
[connection.reconnect]
heartbeat = "often"

[[connection]]
uuid = 5
"""
        assert refusal(text) == [
            'c.toml:3: queue.max_queue_size: expected a whole number from 1 on, or 0 or "unlimited" for no limit, found -1',
            'c.toml:6: daemon.log_level: expected "debug", "info", "warning" or "error", found "chatty"',
            'c.toml:7: daemon.sokket: unknown key; did you mean "socket"?',
            'c.toml:13: connection[0].reconnect.heartbeat: expected a positive number of seconds, found "often"',
            "c.toml:16: connection[1].uuid: expected text, found 5",
        ]

    def test_an_unknown_section_names_the_known_ones(self):
        (line,) = refusal("[xyz]\n")
        assert line.startswith("c.toml:1: xyz: unknown key; known here: access, connection, daemon, ")

    def test_a_near_miss_is_sought_among_the_keys_of_that_table(self):
        assert refusal("[connection]\n")[0].startswith("c.toml:1: connection: expected a list, found a table")
        (line,) = refusal(SERVER + CONNECTION + 'channels = [{label = "a", durabilty = "disk"}]')
        assert line == 'c.toml:6: connection[0].channels[0].durabilty: unknown key; did you mean "durability"?'
        (line,) = refusal(SERVER + SERVICE + "[service.queue]\noverflw = 1")
        assert line == 'c.toml:7: service[0].queue.overflw: unknown key; did you mean "overflow"?'

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a = ", "c.toml:1: not valid TOML: Invalid value (at end of document)"),
            ("a = 1\nb == 2\n", "c.toml:2: not valid TOML: Invalid value (column 4)"),
            ("[a]\n[a]\n", "c.toml:2: not valid TOML: the table [a] stands in the file twice"),
            ('[a."b c"]\n[a."b c"]\n', "c.toml:2: not valid TOML: the table [a.b c] stands in the file twice"),
        ],
    )
    def test_broken_toml_is_told_with_its_line(self, text, expected):
        found = refusal(text)
        # The column is tomllib's own affair.
        assert [line.split(" (column")[0] for line in found] == [expected.split(" (column")[0]]

    def test_a_secret_is_not_shown(self):
        text = '[transport]\nice_servers = [{urls = "turn:a", username = "u", credential = 1234}]'
        assert refusal(text) == ["c.toml:2: transport.ice_servers[0].credential: expected text"]
        text = '[transport]\nice_servers = [{urls = "turn:a", credential = "hush"}, {urls = [], credential = "hush"}]'
        assert "hush" not in "".join(refusal(text))
        server = config.IceServerConfig(urls=["turn:a"], username="u", credential="hush")
        assert "hush" not in repr(server) + str(server)

    def test_a_long_value_is_shortened(self):
        (line,) = refusal(f'[signalling]\nurl = "{"x" * 1000}"')
        assert len(line) < 200

    def test_a_file_that_is_missing_or_no_text_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"/none\.toml: cannot be read: No such file or directory"):
            config.load(tmp_path / "none.toml")
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            config.load(tmp_path)
        (tmp_path / "latin.toml").write_bytes(b"# \xe4\n")
        with pytest.raises(ConfigError, match=r"latin\.toml: is not UTF-8 text: .* at byte 2"):
            config.load(tmp_path / "latin.toml")

    def test_a_file_is_read(self, tmp_path):
        (tmp_path / "c.toml").write_text('[daemon]\nlog_level = "debug"\n')
        assert config.load(tmp_path / "c.toml").daemon.log_level == "debug"

    @pytest.mark.parametrize(
        ("text", "header"),
        [
            ("[service]\n", "[[service]]"),
            ("[queue]\n[ connection ]\n", "[[connection]]"),
            ("[access.rule]\n", "[[access.rule]]"),
            ("[[connection]]\n[connection.channels]\n", "[[connection.channels]]"),
        ],
    )
    def test_a_table_of_which_there_can_be_several_is_told_its_brackets(self, text, header):
        [told] = [line for line in refusal(text) if "expected a list" in line]
        assert told.endswith(f": expected a list, found a table: there can be several, write {header}")

    def test_a_table_that_is_no_list_of_tables_is_told_no_brackets(self):
        assert refusal("[daemon]\nsocket = 1\n[access]\nrule = {}\n")[-1].endswith("expected a list, found a table")

    def test_options_of_the_socket_are_told_without_file_and_line(self):
        with pytest.raises(ConfigError) as refused:
            config.connection_options({"queue": {"max_queu_size": 3}, "peer": b"auto", "channels": {}, "name": "x"})
        assert sorted(str(refused.value).splitlines()) == [
            "options: channels: expected a list, found a table",
            "options: name: unknown key; known here: channels, peer, queue, reconnect",
            'options: peer: expected "auto", "link" or "plain", found binary',
            'options: queue.max_queu_size: unknown key; did you mean "max_queue_size"?',
        ]

    def test_keys_of_the_socket_that_are_no_text_are_refused(self):
        with pytest.raises(ConfigError):
            config.channel_options({5: 1})


class TestLines:
    def test_tables_lists_and_dotted_keys_are_found(self):
        text = """\
a = 1
"b.c" . d = 2
[x]
y = 3
[[s]]
k = 1
[s.q]
k = 2
[[s]]
q.k = 3
[[s.t]]
[[s.t]]
k = 4
"""
        found = find_lines(text)
        assert found["a",] == 1
        assert found["b.c", "d"] == 2
        assert found["x", "y"] == 4
        assert found["s", 0, "q", "k"] == 8
        assert found["s", 1, "q", "k"] == 10
        assert found["s", 1, "t", 1, "k"] == 13

    @pytest.mark.parametrize("quote", ['"""', "'''"])
    def test_what_looks_like_a_key_in_a_text_of_many_lines_is_none(self, quote):
        found = find_lines(f"a = {quote}\n[x]\nb = 1\n{quote}\nb = 2\nc = {quote}one line{quote}\nd = 3\n")
        assert found == {("a",): 1, ("b",): 5, ("c",): 6, ("d",): 7}


class TestDefaultPaths:
    def test_root_has_the_system_paths(self):
        environ = {"HOME": "/root", "XDG_CONFIG_HOME": "/x", "XDG_RUNTIME_DIR": "/run/user/0", "XDG_STATE_HOME": "/y"}
        assert config.default_paths(environ, 0) == config.Paths(
            Path("/etc/rondevud/config.toml"), Path("/var/lib/rondevud"), Path("/run/rondevud/rondevud.sock")
        )

    def test_a_user_has_the_xdg_paths(self):
        environ = {"HOME": "/h", "XDG_CONFIG_HOME": "/c", "XDG_RUNTIME_DIR": "/r", "XDG_STATE_HOME": "/s"}
        assert config.default_paths(environ, 1000) == config.Paths(
            Path("/c/rondevud/config.toml"), Path("/s/rondevud"), Path("/r/rondevud.sock")
        )

    @pytest.mark.parametrize("value", [None, "", "relative"])
    def test_xdg_variables_that_are_not_absolute_do_not_count(self, value):
        names = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR")
        environ = {"HOME": "/h", **(dict.fromkeys(names, value) if value is not None else {})}
        assert config.default_paths(environ, 1000) == config.Paths(
            Path("/h/.config/rondevud/config.toml"),
            Path("/h/.local/state/rondevud"),
            Path("/run/user/1000/rondevud.sock"),
        )

    @pytest.mark.parametrize("uid", [0, 1000])
    def test_the_directories_of_systemd_go_first(self, uid):
        environ = {
            "HOME": "/h",
            "STATE_DIRECTORY": "/var/lib/a:/var/lib/b",
            "CONFIGURATION_DIRECTORY": "/etc/a",
            "RUNTIME_DIRECTORY": "/run/a",
            "XDG_STATE_HOME": "/s",
            "XDG_RUNTIME_DIR": "/r",
        }
        assert config.default_paths(environ, uid) == config.Paths(
            Path("/etc/a/config.toml"), Path("/var/lib/a"), Path("/run/a/rondevud.sock")
        )


def test_every_key_has_words_for_a_wrong_type():
    """No message of pydantic's own reaches people, whatever type a value has."""

    def tables(model):
        for name, field in model.model_fields.items():
            inner = config._section_in(field.annotation)
            yield (field.alias or name), field, inner

    wrong = [object(), None, 1.5, -1, True, b"x", [[]], [None], {"a": 1}, "\0"]
    for model, value in itertools.product((config.ChannelConfig, config.ServiceConfig, config.Config), wrong):
        for key, field, inner in tables(model):
            data = {key: value} if inner is None or field.alias else {key: dict.fromkeys(inner.model_fields, value)}
            try:
                config._validate(model, data, "x")
            except ConfigError as error:
                for line in str(error).splitlines():
                    assert "expected" in line or "missing" in line or "unknown key" in line or "not in this" in line, (
                        line
                    )
