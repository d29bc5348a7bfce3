#!/usr/bin/env python3
"""Write golden.txt: IPVS requests as bytes, put together from the kernel's headers alone.

This shares nothing with the Rust encoder. Numbers are those of linux/netlink.h,
linux/genetlink.h and linux/ip_vs.h; enums are counted here again from their order there.
Run it in this folder: ./golden.py > golden.txt
"""
import ipaddress
import socket
import struct

COMMANDS = """UNSPEC NEW_SERVICE SET_SERVICE DEL_SERVICE GET_SERVICE NEW_DEST SET_DEST DEL_DEST
GET_DEST NEW_DAEMON DEL_DAEMON GET_DAEMON SET_CONFIG GET_CONFIG SET_INFO GET_INFO ZERO FLUSH""".split()
TOP = "UNSPEC SERVICE DEST DAEMON TIMEOUT_TCP TIMEOUT_TCP_FIN TIMEOUT_UDP".split()
SVC = """UNSPEC AF PROTOCOL ADDR PORT FWMARK SCHED_NAME FLAGS TIMEOUT NETMASK STATS PE_NAME
STATS64""".split()
DEST = """UNSPEC ADDR PORT FWD_METHOD WEIGHT U_THRESH L_THRESH ACTIVE_CONNS INACT_CONNS
PERSIST_CONNS STATS ADDR_FAMILY STATS64 TUN_TYPE TUN_PORT TUN_FLAGS""".split()
NESTED = 0x8000


def attribute(kind, payload):
    body = struct.pack("<HH", 4 + len(payload), kind) + payload
    return body + b"\0" * (-len(body) % 4)


def top(name, payload):
    nested = NESTED if name in ("SERVICE", "DEST") else 0
    return attribute(TOP.index(name) | nested, payload)


def service(**fields):
    return top("SERVICE", b"".join(attribute(SVC.index(k), v) for k, v in fields.items()))


def dest(**fields):
    return top("DEST", b"".join(attribute(DEST.index(k), v) for k, v in fields.items()))


def message(command, *attributes):
    body = struct.pack("<BBH", COMMANDS.index(command), 1, 0) + b"".join(attributes)
    # length, then type, flags, sequence and port id, which the socket fills in
    return struct.pack("<IHHII", 16 + len(body), 0, 0, 0, 0) + body


def u16(n):
    return struct.pack("<H", n)


def u32(n):
    return struct.pack("<I", n)


def port(n):
    return struct.pack(">H", n)


def text(s):
    return s.encode() + b"\0"


def key(address, number, protocol):
    address = ipaddress.ip_address(address)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return {"AF": u16(family), "PROTOCOL": u16(protocol), "ADDR": address.packed, "PORT": port(number)}


def server(address, number, **more):
    address = ipaddress.ip_address(address)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    head = {"ADDR": address.packed, "PORT": port(number), "ADDR_FAMILY": u16(family)}
    return dest(**head, **more)


def numbers(method, weight, upper=0, lower=0):
    return {"FWD_METHOD": u32(method), "WEIGHT": u32(weight), "U_THRESH": u32(upper), "L_THRESH": u32(lower)}


WHOLE4 = bytes([255, 255, 255, 255])
WHOLE6 = u32(128)
TCP, UDP, SCTP = socket.IPPROTO_TCP, socket.IPPROTO_UDP, 132
web = key("10.96.0.1", 80, TCP)
dns = key("fd00:10:96::a", 53, UDP)
sig = key("10.96.0.9", 2905, SCTP)


def options(name, flags, mask, timeout, netmask):
    return {"SCHED_NAME": text(name), "FLAGS": u32(flags) + u32(mask), "TIMEOUT": u32(timeout), "NETMASK": netmask}


ALL = 0xFFFFFFFF
cases = {
    "new tcp rr": message("NEW_SERVICE", service(**web, **options("rr", 0, ALL, 0, WHOLE4))),
    "set tcp persistent": message("SET_SERVICE", service(**web, **options("rr", 1, ALL, 10800, WHOLE4))),
    "new udp6 mh port": message("NEW_SERVICE", service(**dns, **options("mh", 0x10, ALL, 0, WHOLE6))),
    "new sctp sh both": message("NEW_SERVICE", service(**sig, **options("sh", 0x18, ALL, 0, WHOLE4))),
    "new udp6 one packet": message("NEW_SERVICE", service(**dns, **options("wlc", 4, ALL, 0, WHOLE6))),
    "set one flag": message("SET_SERVICE", service(**web, **options("lblcr", 0x20, 0x20, 7, bytes([255, 255, 255, 0])))),
    "new mark 4": message("NEW_SERVICE", service(AF=u16(2), FWMARK=u32(77), **options("sed", 0, ALL, 0, WHOLE4))),
    "new mark 6": message("NEW_SERVICE", service(AF=u16(10), FWMARK=u32(0x80000001), **options("nq", 1, ALL, 60, u32(64)))),
    "new sip": message("NEW_SERVICE", service(**key("10.96.0.7", 5060, UDP), SCHED_NAME=text("rr"), PE_NAME=text("sip"),
                                              FLAGS=u32(1) + u32(ALL), TIMEOUT=u32(300), NETMASK=WHOLE4)),
    "del tcp": message("DEL_SERVICE", service(**web)),
    "del mark": message("DEL_SERVICE", service(AF=u16(2), FWMARK=u32(77))),
    "new dest": message("NEW_DEST", service(**web), server("10.1.0.2", 8080, **numbers(0, 1))),
    "new dest6": message("NEW_DEST", service(**dns), server("fd01::2", 5353, **numbers(0, 100, 1000, 800))),
    "set dest 0": message("SET_DEST", service(**sig), server("10.1.0.3", 2905, **numbers(0, 0))),
    "new local": message("NEW_DEST", service(**web), server("10.1.0.4", 80, **numbers(1, 1))),
    "new direct": message("NEW_DEST", service(**web), server("10.1.0.5", 80, **numbers(3, 2))),
    "new ipip": message("NEW_DEST", service(**web), server("10.1.0.6", 80, **numbers(2, 1), TUN_TYPE=b"\0", TUN_PORT=port(0), TUN_FLAGS=u16(0))),
    "new gue": message("NEW_DEST", service(**web), server("fd01::7", 80, **numbers(2, 1), TUN_TYPE=b"\1", TUN_PORT=port(6080), TUN_FLAGS=u16(1))),
    "new gre": message("NEW_DEST", service(**web), server("10.1.0.8", 80, **numbers(2, 3), TUN_TYPE=b"\2", TUN_PORT=port(0), TUN_FLAGS=u16(1))),
    "del dest": message("DEL_DEST", service(**web), server("10.1.0.2", 8080)),
    "del dest6": message("DEL_DEST", service(**dns), server("fd01::2", 5353)),
    "flush": message("FLUSH"),
    "zero all": message("ZERO"),
    "zero one": message("ZERO", service(**web)),
    "timeouts": message("SET_CONFIG", top("TIMEOUT_TCP", u32(900)), top("TIMEOUT_TCP_FIN", u32(120)), top("TIMEOUT_UDP", u32(300))),
    "timeout udp": message("SET_CONFIG", top("TIMEOUT_UDP", u32(17))),
}
for name, bytes_ in cases.items():
    print(f"{name}: {bytes_.hex()}")
