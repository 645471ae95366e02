/* Watches a plant network without touching it: who speaks Modbus/TCP and PROFINET to whom, and who writes that should not.
 *
 * A socket filter: it gets a copy of each frame on one interface, such as the mirror port of a switch, and returns 0, so
 * that nothing of it goes further. It needs no headers of libbpf and no types of the kernel.
 *
 * Modbus/TCP: Ethernet, up to two VLAN tags, IPv4, TCP to or from port 502. The first protocol data unit of a segment is
 * looked at; further ones in the same segment (pipelining) are not. Where a unit begins is not known after a lost or split
 * segment, so that a segment counts only if it begins like one: protocol 0 and a plausible length.
 * PROFINET: EtherType 0x8892; the frame number says whether it is cyclic data, an alarm or discovery (DCP).
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

/* A map is declared by types; `int (*x)[N]` says N. */
#define UINT(name, value) int(*name)[value]
#define TYPE(name, type) type *name

enum { MAP_HASH = 1, MAP_ARRAY = 2, MAP_PERCPU_ARRAY = 6, MAP_LRU_HASH = 9, MAP_RINGBUF = 27 };

static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*load_bytes)(const void *skb, u32 offset, void *to, u32 length) = (void *)26;
static long (*ring_output)(void *ring, const void *data, u64 size, u64 flags) = (void *)130;

enum { ONLY_IF_ABSENT = 1 };

/* Whatever is handed to a helper is written in whole words of 64 bits: a program without CAP_PERFMON may not write a part of a
 * place on the stack that holds a number, and verifiers such as that of Linux 6.1 take a single byte for one ("attempt to
 * corrupt spilled pointer on stack"). The words are the node's, which is little-endian on every target. */

/* What a socket filter is given; only the length is used here. */
struct sk_buff_view {
    u32 length;
};

/* The order of `totals`; settings.metrics names them. */
enum total {
    FRAMES, MODBUS_REQUESTS, MODBUS_RESPONSES, MODBUS_EXCEPTIONS, MODBUS_WRITES, MODBUS_UNKNOWN_WRITES,
    PN_CYCLIC, PN_ALARMS, PN_DCP, PN_DCP_SETS, PN_UNKNOWN_SETS, PN_OTHER, EVENTS_LOST, TOTALS
};

struct {
    UINT(type, MAP_PERCPU_ARRAY);
    UINT(max_entries, TOTALS);
    TYPE(key, u32);
    TYPE(value, u64);
} totals SEC(".maps");

/* Requests, by who asks whom for what. The oldest pair goes when there are too many. */
struct peer {
    u32 source;
    u32 destination;
    u8 function;
    u8 unit;
    u16 zero;
};
union peer_words {
    struct peer peer;
    u64 words[2];
};
struct {
    UINT(type, MAP_LRU_HASH);
    UINT(max_entries, 1024);
    TYPE(key, struct peer);
    TYPE(value, u64);
} modbus SEC(".maps");

/* Who may write: IPv4 address as on the wire. Filled by settings.init. */
struct {
    UINT(type, MAP_HASH);
    UINT(max_entries, 256);
    TYPE(key, u32);
    TYPE(value, u8);
} masters SEC(".maps");

/* Who may change names and addresses by DCP: a MAC address. Filled by settings.init. */
struct mac {
    u8 bytes[6];
};
struct {
    UINT(type, MAP_HASH);
    UINT(max_entries, 256);
    TYPE(key, struct mac);
    TYPE(value, u8);
} engineers SEC(".maps");

struct {
    UINT(type, MAP_RINGBUF);
    UINT(max_entries, 65536);
} events SEC(".maps");

/* Records; the first byte is the place of the text in settings.logFormats. */
enum { EVENT_WRITE = 0, EVENT_WRITE_ONE = 1, EVENT_WRITE_MASK = 2, EVENT_DCP_SET = 3 };

/* One is made of two words. */
struct write_event {
    u8 kind;
    u8 unit;
    u8 function;
    u8 zero;
    u32 source;
    u32 destination;
    u16 address;
    u16 count;
};
struct set_event {
    u8 kind;
    u8 zero;
    u8 source[6];
    u8 destination[6];
    u16 frame;
};

INLINE void count(u32 which)
{
    u64 key = which;
    u64 *total = map_lookup(&totals, &key);
    if (total)
        *total += 1;
}

INLINE u16 be16(const u8 *at)
{
    return (u16)(at[0] << 8 | at[1]);
}

INLINE void count_peer(const union peer_words *peer)
{
    u64 *seen = map_lookup(&modbus, peer), one = 1;
    if (seen)
        __sync_fetch_and_add(seen, 1);
    else
        map_update(&modbus, peer, &one, ONLY_IF_ABSENT);
}

INLINE int is_write(u8 function)
{
    return function == 5 || function == 6 || function == 15 || function == 16 || function == 22 || function == 23;
}

/* A write: is whoever sends it among the masters? */
INLINE void judge_write(struct sk_buff_view *skb, u32 data, const union peer_words *peer, u32 function, u32 unit)
{
    u64 event[2], registers, kind, body = 0;
    const u8 *bytes = (const u8 *)&body;

    count(MODBUS_WRITES);
    if (map_lookup(&masters, &peer->words[0]))
        return;
    count(MODBUS_UNKNOWN_WRITES);
    if (function == 23) {
        /* Read address and count come first, then those of the write. */
        if (load_bytes(skb, data + 4, &body, 4))
            return;
        kind = EVENT_WRITE;
    } else {
        if (load_bytes(skb, data, &body, 4))
            return;
        if (function == 15 || function == 16)
            kind = EVENT_WRITE;
        else if (function == 22)
            kind = EVENT_WRITE_MASK;
        else
            kind = EVENT_WRITE_ONE;
    }
    registers = be16(bytes) | (u64)be16(bytes + 2) << 16;
    event[0] = kind | (u64)unit << 8 | (u64)function << 16 | peer->words[0] << 32;
    event[1] = peer->words[0] >> 32 | registers << 32;
    if (ring_output(&events, event, sizeof(event), 0))
        count(EVENTS_LOST);
}

/* The application protocol header of Modbus: transaction, protocol 0, length, unit; then the function. */
INLINE void modbus_unit(struct sk_buff_view *skb, u32 at, u32 end, int request, u32 source, u32 destination)
{
    u8 header[8];
    u16 length;

    if (at + sizeof(header) > end || load_bytes(skb, at, header, sizeof(header)))
        return;
    length = be16(header + 4);
    if (be16(header + 2) != 0 || length < 2 || length > 254)
        return;
    if (!request) {
        count(header[7] & 0x80 ? MODBUS_EXCEPTIONS : MODBUS_RESPONSES);
        return;
    }
    union peer_words peer = {.words = {source | (u64)destination << 32, header[7] | (u64)header[6] << 8}};
    count(MODBUS_REQUESTS);
    count_peer(&peer);
    if (is_write(header[7]))
        judge_write(skb, at + sizeof(header), &peer, header[7], header[6]);
}

INLINE void ipv4(struct sk_buff_view *skb, u32 at)
{
    u8 ip[20], tcp[14];
    u32 tcp_at, data, end, source, destination;

    if (load_bytes(skb, at, ip, sizeof(ip)) || ip[0] >> 4 != 4 || ip[9] != 6)
        return;
    /* A later fragment has no ports. */
    if (be16(ip + 6) & 0x1fff)
        return;
    end = at + be16(ip + 2);
    tcp_at = at + (ip[0] & 15) * 4;
    if (load_bytes(skb, tcp_at, tcp, sizeof(tcp)))
        return;
    data = tcp_at + (tcp[12] >> 4) * 4;
    __builtin_memcpy(&source, ip + 12, 4);
    __builtin_memcpy(&destination, ip + 16, 4);
    if (be16(tcp + 2) == 502)
        modbus_unit(skb, data, end, 1, source, destination);
    else if (be16(tcp) == 502)
        modbus_unit(skb, data, end, 0, source, destination);
}

/* A MAC address as a number whose bytes in memory are those on the wire. */
INLINE u64 address(const u8 *at)
{
    return at[0] | (u64)at[1] << 8 | (u64)at[2] << 16 | (u64)at[3] << 24 | (u64)at[4] << 32 | (u64)at[5] << 40;
}

/* Frame number, then for discovery the service (4 is Set) and its type (0 is a request). */
INLINE void profinet(struct sk_buff_view *skb, u32 at, const u8 *ethernet)
{
    u8 head[4];
    u16 frame;

    if (load_bytes(skb, at, head, sizeof(head)))
        return;
    frame = be16(head);
    if (frame == 0xfc01 || frame == 0xfe01) {
        count(PN_ALARMS);
    } else if (frame >= 0xfefc && frame <= 0xfeff) {
        count(PN_DCP);
        if (frame == 0xfefd && head[2] == 4 && head[3] == 0) {
            count(PN_DCP_SETS);
            if (!map_lookup(&engineers, ethernet + 6)) {
                /* Kind, zero, source; destination, frame. */
                u64 event[2] = {EVENT_DCP_SET | address(ethernet + 6) << 16, address(ethernet) | (u64)frame << 48};
                count(PN_UNKNOWN_SETS);
                if (ring_output(&events, event, sizeof(event), 0))
                    count(EVENTS_LOST);
            }
        }
    } else if (frame >= 0x0020 && frame <= 0xfbff) {
        count(PN_CYCLIC);
    } else {
        count(PN_OTHER);
    }
}

SEC("socket")
int fieldbus_watch(struct sk_buff_view *skb)
{
    u8 ethernet[14], tag[4];
    u32 at = sizeof(ethernet);
    u16 type;

    count(FRAMES);
    if (load_bytes(skb, 0, ethernet, sizeof(ethernet)))
        return 0;
    type = be16(ethernet + 12);
    /* Tags that the network card has not taken off. */
    for (int i = 0; i < 2; i++) {
        if (type != 0x8100 && type != 0x88a8)
            break;
        if (load_bytes(skb, at, tag, sizeof(tag)))
            return 0;
        type = be16(tag + 2);
        at += sizeof(tag);
    }
    if (type == 0x0800)
        ipv4(skb, at);
    else if (type == 0x8892)
        profinet(skb, at, ethernet);
    return 0;
}

char _license[] SEC("license") = "Apache-2.0";
