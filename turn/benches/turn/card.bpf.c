/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Both ends of the world that `card.rs` makes: packets come out of nothing at the moments that are asked for, and what
 * comes back is counted and goes nowhere.
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* The structs below are written by user space too: `card.rs` has the same. */

#define HEADERS (sizeof(struct ethhdr) + sizeof(struct iphdr) + sizeof(struct udphdr))
/* Of ChannelData. */
#define HEAD 4
#define PAYLOAD 1200
#define MARK 0x6472616374736e80ULL

/* Who sends to whom. */
struct flow {
	/* The packet's beginning; of a peer's without the head. */
	__u8 headers[HEADERS + HEAD];
	__u8 is_client;
	__u8 zero;
};

struct load {
	/* CLOCK_MONOTONIC, in nanoseconds: when the next burst is due. */
	__u64 due;
	__u64 sent;
	/* What came to clients and to peers. */
	__u64 received[2];
	/* Where packets go in. */
	__u32 interface;
	__u32 flows;
	__u32 burst;
	/* Of this burst so many are sent. */
	__u32 in_burst;
	/* Whose it is. */
	__u32 flow;
	__u32 zero;
};

#define FLOWS 4096
#define PAUSES 4096

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct load);
} LOAD SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOWS);
	__type(key, __u32);
	__type(value, struct flow);
} FLOW SEC(".maps");

/* How long one burst comes after another, in nanoseconds; each is as likely. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PAUSES);
	__type(key, __u32);
	__type(value, __u64);
} PAUSE SEC(".maps");

static long is_due(__u32 round, void *due)
{
	return bpf_ktime_get_ns() >= *(__u64 *)due;
}

/* Makes the next packet, in its time, of a frame that has room for a client's. */
SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 zero = 0, at;
	struct load *load = bpf_map_lookup_elem(&LOAD, &zero);
	struct flow *flow;
	void *data;
	__u64 *pause, due, mark = MARK;

	if (!load)
		return XDP_ABORTED;
	if (load->in_burst == 0) {
		load->flow = bpf_get_prandom_u32() % load->flows;
		at = bpf_get_prandom_u32() % PAUSES;
		pause = bpf_map_lookup_elem(&PAUSE, &at);
		if (!pause)
			return XDP_ABORTED;
		due = load->due + *pause;
		load->due = due;
		bpf_loop(1 << 23, is_due, &due, 0);
	}
	load->in_burst = (load->in_burst + 1) % load->burst;
	flow = bpf_map_lookup_elem(&FLOW, &load->flow);
	if (!flow)
		return XDP_ABORTED;
	if (!flow->is_client && bpf_xdp_adjust_tail(ctx, -HEAD))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	if (data + HEADERS + HEAD + sizeof(mark) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memcpy(data, flow->headers, HEADERS);
	if (flow->is_client) {
		__builtin_memcpy(data + HEADERS, flow->headers + HEADERS, HEAD);
		__builtin_memcpy(data + HEADERS + HEAD, &mark, sizeof(mark));
	} else {
		__builtin_memcpy(data + HEADERS, &mark, sizeof(mark));
		/* Of a client's mark that was there. */
		__builtin_memset(data + HEADERS + sizeof(mark), 0, HEAD);
	}
	load->sent += 1;
	return bpf_redirect(load->interface, 0);
}

/* Takes what came of such packets out of the network. */
SEC("classifier")
int count(struct __sk_buff *skb)
{
	__u32 zero = 0, head;
	struct load *load = bpf_map_lookup_elem(&LOAD, &zero);
	__u64 found;
	int at_client;

	if (!load || bpf_skb_load_bytes(skb, HEADERS, &head, sizeof(head)))
		return TC_ACT_OK;
	at_client = (bpf_ntohl(head) & 0xC000FFFF) == (0x40000000 | PAYLOAD);
	if (bpf_skb_load_bytes(skb, HEADERS + (at_client ? HEAD : 0), &found, sizeof(found)) || found != MARK)
		return TC_ACT_OK;
	__sync_fetch_and_add(&load->received[!at_client], skb->gso_segs ? skb->gso_segs : 1);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
