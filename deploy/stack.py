"""A small production on this machine: api, processor and consumer of a build, a gateway that
misbehaves on request, callers, and a real Prometheus that scrapes it all.

Needs the PostgreSQL and the Kafka of `scripts/services run`. Used by try-dashboards and try-alerts.
"""

import asyncio
import base64
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "messager/prometheus"
PARTS = ["api", "processor", "consumer"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(what, condition, seconds=30):
    """Returns the first true value of `condition`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise TimeoutError(f"not within {seconds} s: {what}")


def prometheus_binary():
    """Finds Prometheus, or unpacks Debian's package into the cache, as deploy/check does."""
    found = shutil.which("prometheus")
    if found:
        return found
    binary = CACHE / "usr/bin/prometheus"
    if not binary.exists():
        with tempfile.TemporaryDirectory() as folder:
            download = ["apt-get", "-qq", "download", "prometheus"]
            try:
                if subprocess.run(download, cwd=folder, capture_output=True).returncode:
                    subprocess.run(["apt-get", "-qq", "update"], check=True, capture_output=True)
                    subprocess.run(download, cwd=folder, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                raise SystemExit("Prometheus not found: install it (Debian: prometheus)") from None
            CACHE.mkdir(parents=True, exist_ok=True)
            package = next(Path(folder).glob("*.deb"))
            subprocess.run(["dpkg-deb", "-x", package, CACHE], check=True)
    return str(binary)


class Gateways:
    """The gateways main and spare. `faults` has "slow" or "down" for a gateway that misbehaves."""

    def __init__(self):
        self.faults = {}
        self.codes = {}
        self.timers = ThreadPoolExecutor(8)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/events":
                    return self.answer(200, b"")
                status, answer = outer.send(self.path[1:], json.loads(body))
                self.answer(status, json.dumps(answer).encode())

            def answer(self, status, body):
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        # A consumer that is stopped breaks its calls off.
        self.server.handle_error = lambda *_: None
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def send(self, gateway, message):
        fault = self.faults.get(gateway)
        if fault == "down":
            return 503, {}
        if fault == "slow":
            time.sleep(7)
        self.codes[message["to"]] = re.search(r"\d{6}", message["text"])[0]
        if message.get("callback"):
            self.timers.submit(self.report, message)
        return 200, {"id": f"{gateway}-{message['id']}"}

    @staticmethod
    def report(message):
        time.sleep(0.3)
        body = json.dumps({"id": message["id"], "state": "delivered"}).encode()
        headers = {"content-type": "application/json"}
        try:
            urllib.request.urlopen(
                urllib.request.Request(message["callback"], body, headers), timeout=5).close()
        except OSError:
            pass

    def file(self, path):
        text = ""
        for name in ["main", "spare"]:
            text += f"""
[gateway.{name}]
provider = "http"
url = "http://127.0.0.1:{self.port}/{name}"
deduplicates = true
message_id = "id"
price = 0.05
daily_budget = 1000000

[gateway.{name}.body]
id = "{{{{ id }}}}"
to = "{{{{ phone }}}}"
text = "{{{{ text }}}}"
callback = "{{{{ callback }}}}"

[gateway.{name}.receipts]
id = "id"
state = "state"
delivered = "delivered"
undelivered = "undelivered"
"""
        text += """
[[route]]
regions = ["RU"]
gateways = ["main", "spare"]

[[route]]
gateways = ["main", "spare"]

[failover]
no_receipt_within = "30s"
"""
        path.write_text(text, encoding="utf-8")


class SlowLink:
    """A TCP proxy to PostgreSQL that holds each answer back for `delay` seconds."""

    def __init__(self, port):
        self.delay = 0.0
        self.target = port
        self.port = None
        started = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self.serve(started)), daemon=True).start()
        started.wait()

    async def serve(self, started):
        server = await asyncio.start_server(self.connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await server.serve_forever()

    async def connect(self, reader, writer):
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self.copy(reader, forth, False), self.copy(back, writer, True))

    async def copy(self, reader, writer, slow):
        try:
            while data := await reader.read(65536):
                if slow and self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()


class Callers:
    """Callers who start verifications and check most of the codes."""

    def __init__(self, url, gateways, rate=20):
        self.url, self.gateways, self.rate = url, gateways, rate
        self.random = random.Random(1)
        self.workers = ThreadPoolExecutor(64)
        self.stopping = threading.Event()
        self.flooding = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        number = 0
        while not self.stopping.wait(1 / self.rate):
            number += 1
            self.workers.submit(self.call, number)
            if self.flooding:
                for _ in range(5):
                    self.workers.submit(self.start, f"+7999555{self.random.randrange(10_000):04}")

    def phone(self, number):
        low, high = {0: (491510000000, 10**7), 1: (77010000000, 10**7)}.get(
            number % 10, (79000000000, 10**8))
        return f"+{low + self.random.randrange(high)}"

    def call(self, number):
        phone = self.phone(number)
        if number % 10 == 9:
            self.post("/api", {"phone": phone[1:]})
            return
        started = self.start(phone)
        if not started:
            return
        if number % 10 == 2:
            # Too early, so a limit is reached.
            self.start(phone)
        for _ in range(100):
            code = self.gateways.codes.pop(phone[1:], None)
            if code:
                break
            time.sleep(0.1)
        else:
            return
        checks = f"/v1/verifications/{started['id']}/checks"
        if number % 5 == 3:
            self.post(checks, {"code": f"{(int(code) + 1) % 10**6:06}"})
        self.post(checks, {"code": code})

    def start(self, phone):
        return self.post("/v1/verifications", {"phone": phone})

    def post(self, path, body):
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.loads(answer.read())
        except (OSError, ValueError):
            return None

    def stop(self):
        self.stopping.set()
        self.thread.join()
        self.workers.shutdown(cancel_futures=True)


class Prometheus:
    def __init__(self, work, targets, rules):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = work / "prometheus.yml"
        jobs = [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for job, port in targets.items()
        ]
        config.write_text(json.dumps({
            "global": {"scrape_interval": "1s", "scrape_timeout": "900ms", "evaluation_interval": "1s"},
            "rule_files": [str(rule) for rule in rules],
            "scrape_configs": jobs,
        }), encoding="utf-8")
        self.log = open(work / "prometheus.log", "wb")
        self.process = subprocess.Popen(
            [prometheus_binary(), f"--config.file={config}", f"--storage.tsdb.path={work}/tsdb",
             f"--web.listen-address=127.0.0.1:{self.port}"],
            stdout=self.log, stderr=self.log)

    def get(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def query(self, expression):
        """Returns the values, without NaN. Raises ValueError if the expression is wrong."""
        answer = self.get("query", query=expression)
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        found = answer["data"]["result"]
        values = [float(it["value"][1]) for it in found]
        return [value for value in values if value == value]

    def rules(self):
        return [rule for group in self.get("rules")["data"]["groups"] for rule in group["rules"]]

    def firing(self):
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["data"]["alerts"]
                if alert["state"] == "firing"}

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


class Stack:
    """`binaries` is the folder with api, processor, consumer and messager."""

    def __init__(self, binaries, rules=None):
        self.binaries = Path(binaries).resolve()
        self.work = Path(tempfile.mkdtemp(prefix="messager-try."))
        self.processes, self.ports = {}, {}
        self.prometheus = self.callers = None
        try:
            self.begin(rules)
        except BaseException:
            self.close()
            raise

    def begin(self, rules):
        found = re.match(r"postgres://([^:]+):([^@]+)@([^:]+):(\d+)/", os.environ["TEST_POSTGRES_URL"])
        user, password, _, port = found.groups()
        self.link = SlowLink(int(port))
        self.gateways = Gateways()
        self.gateways.file(self.work / "gateways.toml")
        self.name = f"try_{os.getpid()}"
        self.api_port = free_port()
        self.direct = {
            "PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": user, "PGPASSWORD": password}
        self.psql("postgres", f"CREATE DATABASE {self.name} TEMPLATE template0 ENCODING 'UTF8'")
        self.settings = {
            "PATH": os.environ["PATH"],
            "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(self.link.port),
            "POSTGRES_DB": self.name, "POSTGRES_USER": user, "POSTGRES_PASSWORD": password,
            "DB_SSL_MODE": "disable",
            "PRODUCER_URL": os.environ["TEST_KAFKA"], "CONSUMER_URL": os.environ["TEST_KAFKA"],
            "PROCESSOR_TOPIC": self.name, "CONSUMER_TOPIC": self.name,
            "CONSUMER_AUTO_OFFSET_RESET": "earliest",
            "APP_HOST": "127.0.0.1", "APP_PORT": str(self.api_port), "API_AUTH": "none",
            "PUBLIC_URL": f"http://127.0.0.1:{self.api_port}",
            "LIMIT_PREFIX": "200/1h",
            "GATEWAYS_FILE": str(self.work / "gateways.toml"),
            "EVENTS_URL": f"http://127.0.0.1:{self.gateways.port}/events",
            "EVENTS_SECRET": "whsec_" + base64.b64encode(os.urandom(32)).decode(),
            "EVENTS_ALLOW_PRIVATE": "true",
            "PROMETHEUS_SERVER_HOST": "127.0.0.1", "LOG_FORMAT": "json",
        }
        migrate = subprocess.run(
            [self.binaries / "messager", "migrate", "up"], env=self.settings, cwd=self.work,
            capture_output=True, text=True)
        if migrate.returncode:
            raise RuntimeError(f"messager migrate up: {migrate.stdout}{migrate.stderr}")
        for part in PARTS:
            self.ports[part] = free_port()
            self.start(part)
        for part in PARTS:
            wait_for(f"{part} is ready", lambda: self.is_ready(part))
        rules = rules or sorted((DEPLOY / "prometheus/rules").glob("*.yml"))
        self.prometheus = Prometheus(self.work, self.ports, rules)
        wait_for("Prometheus answers", self.is_scraped)
        self.callers = Callers(f"http://127.0.0.1:{self.api_port}", self.gateways)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def psql(self, database, sql):
        subprocess.run(
            [Path(os.environ["TEST_PG_BIN"]) / "psql", "-XqAt", "-d", database, "-c", sql],
            env={**os.environ, **self.direct}, check=True, capture_output=True)

    def start(self, part):
        log = open(self.work / f"{part}.log", "ab")
        environment = {**self.settings, "PROMETHEUS_SERVER_PORT": str(self.ports[part])}
        self.processes[part] = subprocess.Popen(
            [self.binaries / part], env=environment, cwd=self.work, stdout=log, stderr=log)
        log.close()

    def stop(self, part):
        process = self.processes.pop(part)
        process.send_signal(signal.SIGTERM)
        process.wait()

    def is_ready(self, part):
        if self.processes[part].poll() is not None:
            log = (self.work / f"{part}.log").read_text("utf-8", "replace")
            raise RuntimeError(f"{part} ended: {log[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[part]}/readyz", timeout=2) as it:
                return it.status == 200
        except OSError:
            return False

    def is_scraped(self):
        try:
            return len(self.prometheus.query("up == 1")) == len(PARTS)
        # While it starts, its answer is no JSON.
        except (OSError, ValueError):
            return False

    def close(self):
        if self.callers:
            self.callers.stop()
        for process in self.processes.values():
            process.kill()
            process.wait()
        if self.prometheus:
            self.prometheus.stop()
        try:
            self.psql("postgres", f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")
        finally:
            if os.environ.get("KEEP"):
                print(f"kept: {self.work}")
            else:
                shutil.rmtree(self.work, ignore_errors=True)


def panels():
    """Yields the board, the title and the expression of each query of the dashboards."""
    for file in sorted((DEPLOY / "grafana/dashboards").glob("*.json")):
        for panel in json.loads(file.read_text("utf-8"))["panels"]:
            for target in panel.get("targets", []):
                yield file.stem, panel["title"], target["expr"]


def filled(expression, rate="10s", time_range="30s"):
    """Fills in Grafana's variables."""
    expression = expression.replace("$__rate_interval", rate).replace("$__range", time_range)
    return re.sub(r"\$(service|function)\b", ".+", expression)
