# PTT as a peer of the side-by-side harness (its README says what start, count and stop must do).
# Needs PTT_ROOT (the checkout) and PTT_PYTHON (an interpreter with PTT installed) in the environment.
. "$HERE/lib.sh"
D=$WORK/ptt
ptt() { "$PTT_PYTHON" -m ptt "$@"; }
case $1 in
version) "$PTT_PYTHON" -c 'import ptt; print(ptt.__version__)' ;;
start)
  "$PTT_PYTHON" "$PTT_ROOT/loadtests/peer_config.py" "$D" --port "$PORT" --sink-port "$SINK_PORT" \
    --dns-port "$PORT2" --scenario "$SCENARIO" --key "$DKIM_KEY" --domain "$DKIM_DOMAIN" --selector "$DKIM_SELECTOR"
  if [ "$SCENARIO" = relay-dkim ]; then
    "$PTT_PYTHON" -m ptt.dns.server --listen "127.0.0.1:$PORT2" --zone "$DKIM_DOMAIN" --key "$D/tsig.key" \
      --wildcard-mx mx.sink.example > "$WORK/dns.out" 2>&1 &
    echo $! > "$WORK/dns.pid"
  fi
  "$PTT_PYTHON" -m ptt.service.supervisor --config "$D/ptt.toml" --pool "${PTT_POOL:-2}" > "$WORK/ptt.out" 2> "$WORK/ptt.log" &
  echo $! > "$WORK/ptt.pid"
  for i in $(seq 1 400); do grep -q 'ptt: ready' "$WORK/ptt.out" && break; sleep 0.05; done
  if [ "$SCENARIO" = relay-dkim ]; then  # the key is used only once DNS serves it
    for i in $(seq 1 400); do grep -q '"served": *true' "$D/run/dkim.json" 2>/dev/null && break; sleep 0.05; done
  fi
  if [ "$SCENARIO" = accept ]; then ptt queue suspend dest.example --config "$D/ptt.toml" > /dev/null; fi  # held
  wait_port "$PORT" ;;
count) ptt queue stats --config "$D/ptt.toml" --json | "$PTT_PYTHON" -c 'import json, sys; print(json.load(sys.stdin)["process"]["messages"])' ;;
stop)
  stop_pidfile "$WORK/ptt.pid"
  if [ -f "$WORK/dns.pid" ]; then stop_pidfile "$WORK/dns.pid"; fi ;;
esac
