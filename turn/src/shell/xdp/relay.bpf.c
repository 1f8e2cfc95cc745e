/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The way of ChannelData past user space: what penstock-turn has decided about a channel, carried out by the network
 * driver, before the kernel makes anything more of a packet.
 *
 *   eth | ip  client > server | udp | channel head | payload      to_peer:   the head goes
 *   eth | ip  relay  > peer   | udp |              | payload
 *
 *   eth | ip  peer   > relay  | udp |              | payload      to_client: the head comes
 *   eth | ip  server > client | udp | channel head | payload
 *
 * Everything else goes on to the server's sockets as if this were not here (XDP_PASS): all STUN, peers without a
 * channel, IPv6, fragments, unfinished checksums, what has no known route or neighbour, and what user space has not said
 * or has let expire.
 * A packet is looked at in full before it is changed, so nothing is passed on half changed.
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
/* What hosts send with (RFC 1700 names it); a packet that was relayed starts anew. */
#define TTL 64
#define DONT_FRAGMENT 0x4000

/* The four structs below are written by user space too: `maps.rs` has the same. Addresses and ports as in packets. */

struct to_peer_key {
	__be32 client;
	__be32 server;
	__be16 client_port;
	__be16 server_port;
	__be16 channel;
	__u16 zero;
};

struct to_peer {
	/* CLOCK_MONOTONIC, in nanoseconds. */
	__u64 until;
	__be32 relay;
	__be32 peer;
	__be16 relay_port;
	__be16 peer_port;
	__u32 zero;
};

struct to_client_key {
	__be32 peer;
	__be32 relay;
	__be16 peer_port;
	__be16 relay_port;
};

struct to_client {
	__u64 until;
	__be32 server;
	__be32 client;
	__be16 server_port;
	__be16 client_port;
	__be16 channel;
	__u16 zero;
};

/* What was relayed, on each CPU. */
struct count {
	__u64 packets;
	/* Of payload. */
	__u64 bytes;
};

enum direction { TO_PEER, TO_CLIENT, DIRECTIONS };

/* Four for each of the 16,384 relay ports that are served by default. */
#define CHANNELS 65536
#define INTERFACES 64

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CHANNELS);
	__type(key, struct to_peer_key);
	__type(value, struct to_peer);
} TO_PEERS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CHANNELS);
	__type(key, struct to_client_key);
	__type(value, struct to_client);
} TO_CLIENTS SEC(".maps");

/* The interfaces that this program is on; packets leave by no other. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, INTERFACES);
	__type(key, __u32);
	__type(value, __u32);
} PORTS SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DIRECTIONS);
	__type(key, __u32);
	__type(value, struct count);
} COUNTS SEC(".maps");

/* RFC 8656, section 12.4. */
struct channel_head {
	__be16 number;
	__be16 length;
};

struct headers {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((packed));

/* Where a packet goes, and how long its payload is. */
struct way {
	__be32 from;
	__be32 to;
	__be16 from_port;
	__be16 to_port;
	__u16 payload;
};

static __always_inline __u32 folded(__u32 sum)
{
	sum = (sum & 0xFFFF) + (sum >> 16);
	return (sum & 0xFFFF) + (sum >> 16);
}

static __always_inline __u32 sum_of(__be32 address)
{
	return (address & 0xFFFF) + (address >> 16);
}

/* Whether the checksum is still to be made: so far it has the pseudo-header, for a network card to do the rest. So come
 * packets of this machine's other containers or a neighbouring virtual machine, and, in generic mode, datagrams that the
 * kernel has merged for our sockets. A finished one that looks the same, one in 65,535, goes by user space too. */
static __always_inline int is_unfinished(const struct headers *headers)
{
	__u32 sum = sum_of(headers->ip.saddr) + sum_of(headers->ip.daddr) + bpf_htons(IPPROTO_UDP) + headers->udp.len;

	return headers->udp.check == folded(sum);
}

/* Finds the next hop, and whether it is reached by an interface of ours. */
static __always_inline int next_hop(struct xdp_md *ctx, const struct headers *old, const struct way *way,
				    struct bpf_fib_lookup *hop)
{
	hop->family = AF_INET;
	hop->tos = old->ip.tos;
	hop->l4_protocol = IPPROTO_UDP;
	hop->sport = way->from_port;
	hop->dport = way->to_port;
	hop->tot_len = sizeof(struct iphdr) + sizeof(struct udphdr) + way->payload;
	hop->ipv4_src = way->from;
	hop->ipv4_dst = way->to;
	hop->ifindex = ctx->ingress_ifindex;
	if (bpf_fib_lookup(ctx, hop, sizeof(*hop), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return 0;
	return hop->ifindex == ctx->ingress_ifindex || bpf_map_lookup_elem(&PORTS, &hop->ifindex);
}

/* Writes the headers of a packet that goes a new way. `head` is the sum of the words of the channel head that came, or,
 * inverted, of the one that went. */
static __always_inline void rewrite(struct headers *new, const struct headers *old, const struct way *way,
				    const struct bpf_fib_lookup *hop, __u32 head)
{
	__be16 udp_length = bpf_htons(sizeof(struct udphdr) + way->payload);
	union {
		struct iphdr header;
		__u16 words[sizeof(struct iphdr) / 2];
	} ip = { .header = old->ip };
	__u32 sum = 0;

	__builtin_memcpy(new->eth.h_dest, hop->dmac, ETH_ALEN);
	__builtin_memcpy(new->eth.h_source, hop->smac, ETH_ALEN);
	new->eth.h_proto = bpf_htons(ETH_P_IP);

	ip.header.tot_len = bpf_htons(sizeof(struct iphdr) + sizeof(struct udphdr) + way->payload);
	ip.header.ttl = TTL;
	ip.header.saddr = way->from;
	ip.header.daddr = way->to;
	ip.header.check = 0;
	for (int i = 0; i < sizeof(struct iphdr) / 2; i++)
		sum += ip.words[i];
	ip.header.check = ~folded(sum);
	new->ip = ip.header;

	/* RFC 1624: what went is taken out of the sum and what came is put in, so a payload that was damaged on its way to
	 * us is still known to be. The length counts twice, once in the pseudo-header. None (0) stays none. */
	new->udp.source = way->from_port;
	new->udp.dest = way->to_port;
	new->udp.len = udp_length;
	new->udp.check = old->udp.check;
	if (old->udp.check) {
		sum = (__u16)~old->udp.check + head;
		sum += sum_of(~old->ip.saddr) + sum_of(~old->ip.daddr) + sum_of(way->from) + sum_of(way->to);
		sum += (__u16)~old->udp.source + (__u16)~old->udp.dest + way->from_port + way->to_port;
		sum += 2 * ((__u16)~old->udp.len + udp_length);
		sum = ~folded(sum) & 0xFFFF;
		new->udp.check = sum ? sum : 0xFFFF;
	}
}

static __always_inline int leave(const struct bpf_fib_lookup *hop, __u32 direction,
				 const struct way *way)
{
	struct count *count = bpf_map_lookup_elem(&COUNTS, &direction);

	if (count) {
		count->packets += 1;
		count->bytes += way->payload;
	}
	/* By the way that one interface sends another's packets by, even where it is the same one: whether a driver can do that
	 * is known, and XDP_TX ends in nothing on a veth whose other end has no program. Where it is not among PORTS it is the
	 * kernel that sends, which can do both. */
	return bpf_redirect_map(&PORTS, hop->ifindex, XDP_TX);
}

/* Takes the channel head away. Padding after the payload (RFC 8656, section 12.5) stays behind the packet's end, where
 * Ethernet allows it; it must be zeros, or it would have to leave the checksum too. */
static __always_inline int client_input(struct xdp_md *ctx, const struct headers *old, const struct channel_head *head)
{
	void *data, *data_end;
	struct bpf_fib_lookup hop = {};
	struct headers kept = *old;
	__u16 inside = bpf_ntohs(old->udp.len) - sizeof(struct udphdr) - sizeof(*head);
	__u16 length = bpf_ntohs(head->length);
	__u32 head_sum = (__u16)~head->number + (__u16)~head->length;
	struct to_peer_key key = {
		.client = old->ip.saddr,
		.server = old->ip.daddr,
		.client_port = old->udp.source,
		.server_port = old->udp.dest,
		.channel = head->number,
	};
	struct to_peer *channel = bpf_map_lookup_elem(&TO_PEERS, &key);
	struct way way;
	__u32 frame;

	if (!channel || channel->until <= bpf_ktime_get_ns())
		return XDP_PASS;
	if (length > inside || inside - length > 3)
		return XDP_PASS;
	if (inside != length) {
		__u8 padding[4] = {};
		__u32 at = sizeof(kept) + sizeof(*head) + length;

		if (bpf_xdp_load_bytes(ctx, at, padding, ((inside - length - 1) & 3) + 1) ||
		    padding[0] | padding[1] | padding[2])
			return XDP_PASS;
	}
	way.from = channel->relay;
	way.from_port = channel->relay_port;
	way.to = channel->peer;
	way.to_port = channel->peer_port;
	way.payload = length;
	if (!next_hop(ctx, &kept, &way, &hop))
		return XDP_PASS;

	/* Without the head it could be too short for Ethernet, and not all drivers pad what they did not get from the kernel. */
	frame = bpf_xdp_get_buff_len(ctx) - sizeof(*head);
	if (frame < ETH_ZLEN && bpf_xdp_adjust_tail(ctx, ETH_ZLEN - frame))
		return XDP_PASS;
	if (bpf_xdp_adjust_head(ctx, sizeof(*head)))
		return XDP_PASS;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	if (data + sizeof(kept) > data_end)
		return XDP_DROP;
	rewrite(data, &kept, &way, &hop, head_sum);
	return leave(&hop, TO_PEER, &way);
}

/* Puts a channel head before the payload. */
static __always_inline int peer_input(struct xdp_md *ctx, const struct headers *old)
{
	void *data, *data_end;
	struct bpf_fib_lookup hop = {};
	struct headers kept = *old;
	struct channel_head head, *place;
	struct to_client_key key = {
		.peer = old->ip.saddr,
		.relay = old->ip.daddr,
		.peer_port = old->udp.source,
		.relay_port = old->udp.dest,
	};
	struct to_client *channel = bpf_map_lookup_elem(&TO_CLIENTS, &key);
	struct way way;

	if (!channel || channel->until <= bpf_ktime_get_ns())
		return XDP_PASS;
	head.number = channel->channel;
	head.length = bpf_htons(bpf_ntohs(old->udp.len) - sizeof(struct udphdr));
	way.from = channel->server;
	way.from_port = channel->server_port;
	way.to = channel->client;
	way.to_port = channel->client_port;
	/* With the head, which is part of what is sent. */
	way.payload = bpf_ntohs(head.length) + sizeof(head);
	if (!next_hop(ctx, &kept, &way, &hop))
		return XDP_PASS;

	/* A driver without room in front is one that can't do this. */
	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(head)))
		return XDP_PASS;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	place = data + sizeof(kept);
	if ((void *)(place + 1) > data_end)
		return XDP_DROP;
	rewrite(data, &kept, &way, &hop, head.number + head.length);
	*place = head;
	way.payload -= sizeof(head);
	return leave(&hop, TO_CLIENT, &way);
}

SEC("xdp.frags")
int relay(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct headers *headers = data;
	struct channel_head *head = data + sizeof(*headers);
	__u32 length;

	/* Nothing that is shorter is worth a look; ChannelData and the media of peers are not. */
	if ((void *)(head + 1) > data_end || headers->eth.h_proto != bpf_htons(ETH_P_IP))
		return XDP_PASS;
	if (headers->ip.version != 4 || headers->ip.ihl != 5 || headers->ip.protocol != IPPROTO_UDP ||
	    headers->ip.frag_off & ~bpf_htons(DONT_FRAGMENT))
		return XDP_PASS;
	length = bpf_ntohs(headers->udp.len);
	if (length < sizeof(struct udphdr) + sizeof(*head) ||
	    bpf_ntohs(headers->ip.tot_len) != sizeof(struct iphdr) + length ||
	    sizeof(*headers) - sizeof(struct udphdr) + length > bpf_xdp_get_buff_len(ctx) || is_unfinished(headers))
		return XDP_PASS;

	/* A channel's number begins with the bits 01 (RFC 8656, section 12); so may what peers send. */
	if ((bpf_ntohs(head->number) & 0xC000) == 0x4000) {
		int verdict = client_input(ctx, headers, head);

		if (verdict != XDP_PASS)
			return verdict;
		/* It is unchanged, but the verifier forgets what it knew of it. */
		data = (void *)(long)ctx->data;
		data_end = (void *)(long)ctx->data_end;
		headers = data;
		if ((void *)(headers + 1) > data_end)
			return XDP_PASS;
	}
	return peer_input(ctx, headers);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
