//! The names of all metrics, each spelled once. Labels are bounded: none carries a player, a session or an
//! address.

/// A metric's name and what it says.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The name, with its unit.
    pub name: &'static str,
    /// One sentence for `# HELP`.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($(#[$doc:meta])* $ident:ident = $name:literal, $help:literal;)*) => {
        $($(#[$doc])* #[doc = $help] pub const $ident: Metric = Metric { name: $name, help: $help };)*

        /// Every metric that a Penstock program may export.
        pub const ALL: &[Metric] = &[$($ident),*];
    };
}

metrics! {
    STREAMER_PLAYERS = "penstock_streamer_players", "Players connected to this streamer.";
    STREAMER_VIEWERS = "penstock_streamer_viewers", "Viewers connected to this streamer.";
    STREAMER_UNITS = "penstock_streamer_encoder_units", "Encoder units that the stream takes of its slice.";
    STREAMER_FRAMES = "penstock_streamer_frames_encoded_total", "Frames encoded.";
    STREAMER_KEYFRAMES = "penstock_streamer_keyframes_encoded_total", "Keyframes encoded.";
    STREAMER_FRAMES_DROPPED = "penstock_streamer_viewer_frames_dropped_total", "Encoded frames that a viewer skipped because it fell behind.";
    STREAMER_ENCODED_BYTES = "penstock_streamer_encoded_bytes_total", "Bytes of encoded video.";
    STREAMER_COPIED_BYTES = "penstock_streamer_copied_bytes_total", "Bytes of raw video that were copied between capture and encoder.";
    STREAMER_SENT_BYTES = "penstock_streamer_sent_bytes_total", "Bytes of media sent to players and viewers.";
    STREAMER_SENT_PACKETS = "penstock_streamer_sent_packets_total", "Media packets sent to players and viewers.";
    STREAMER_TRANSPORT_FEEDBACK = "penstock_streamer_transport_feedback_total", "Congestion feedback packets received from players and viewers.";
    STREAMER_CLAIMS = "penstock_streamer_claims_total", "Claims by what became of them.";
    STREAMER_INPUT_EVENTS = "penstock_streamer_input_events_total", "Input events of players by kind.";
    STREAMER_BAD_MESSAGES = "penstock_streamer_bad_messages_total", "Messages that could not be understood, by link.";
    STREAMER_APP_RESTARTS = "penstock_streamer_app_restarts_total", "Times that the streamed application was started again.";

    AGENT_SLICES = "penstock_agent_slices", "Slices by the state of their process.";
    AGENT_RESTARTS = "penstock_agent_streamer_restarts_total", "Streamer processes that were started again.";
    AGENT_CAPACITY = "penstock_agent_capacity", "What each GPU offers, by resource.";
    AGENT_HEALTHY = "penstock_agent_healthy", "Whether a resource of a GPU is given to new slices: 1 or 0.";
    AGENT_FREE = "penstock_agent_free", "What each GPU has left, by resource.";

    PLUGIN_REGISTERED = "penstock_plugin_registered", "Whether the kubelet knows the plugin: 1 or 0.";
    PLUGIN_CAPACITY = "penstock_plugin_capacity", "What each GPU offers, by resource: encoder units, percent of the SMs, blocks of 256 MiB, and MPS clients.";
    PLUGIN_ALLOCATED = "penstock_plugin_allocated", "What pods hold of each GPU, by resource, as in penstock_plugin_capacity.";
    PLUGIN_HEALTHY = "penstock_plugin_healthy", "Whether a resource of a GPU is given to new pods: 1 or 0.";
    PLUGIN_GPU_ENCODER = "penstock_plugin_gpu_encoder_utilization_ratio", "Share of a GPU's encoder time that is used, 0 to 1.";
    PLUGIN_GPU_SM = "penstock_plugin_gpu_sm_utilization_ratio", "Share of the time in which a GPU ran any kernel or shader, 0 to 1.";
    PLUGIN_GPU_MEMORY = "penstock_plugin_gpu_memory_used_bytes", "Bytes of a GPU's memory in use.";
    PLUGIN_GPU_SESSIONS = "penstock_plugin_gpu_encoder_sessions", "Encoder sessions open on a GPU, of whatever process.";
    PLUGIN_GPU_FPS = "penstock_plugin_gpu_encoder_fps", "Frames per second of all encoder sessions of a GPU.";
    PLUGIN_POD_SLICE = "penstock_plugin_pod_slice", "What a pod holds of a GPU, by resource, as in penstock_plugin_capacity.";
    PLUGIN_POD_ENCODER_UNITS = "penstock_plugin_pod_encoder_units", "Encoder units that a pod was measured to use.";
    PLUGIN_POD_ENCODER = "penstock_plugin_pod_encoder_utilization_ratio", "Share of a GPU's encoder time that a pod uses, 0 to 1.";
    PLUGIN_POD_SM = "penstock_plugin_pod_sm_utilization_ratio", "Share of a GPU's SM time that a pod uses, 0 to 1.";
    PLUGIN_POD_MEMORY = "penstock_plugin_pod_memory_used_bytes", "Bytes of a GPU's memory that a pod uses.";
    PLUGIN_POD_SESSIONS = "penstock_plugin_pod_encoder_sessions", "Encoder sessions that a pod has open.";
    PLUGIN_POD_FPS = "penstock_plugin_pod_encoder_fps", "Frames per second of all encoder sessions of a pod.";
    PLUGIN_POD_OVER_SLICE = "penstock_plugin_pod_over_slice", "Whether a pod has used more of the encoder than its slice for 15 s: 1 or 0.";
    PLUGIN_ALLOCATIONS = "penstock_plugin_allocations_total", "Allocations made for the kubelet, by resource.";
    PLUGIN_REFUSALS = "penstock_plugin_refusals_total", "Calls of the kubelet that were refused, by resource; each fails a pod.";
    PLUGIN_XIDS = "penstock_plugin_xid_errors_total", "Errors that the driver reported, by GPU and XID.";

    MPS_UP = "penstock_mps_daemon_up", "Whether the pipe of a GPU's MPS daemon answers: 1 or 0.";
    MPS_RESTARTS = "penstock_mps_daemon_restarts_total", "MPS daemons that were started again, by GPU.";
    MPS_CLIENTS = "penstock_mps_clients", "Processes that use a GPU through MPS, where the driver can tell.";

    EXTENDER_REQUEST_SECONDS = "penstock_extender_request_seconds", "Time that a question of the scheduler took, by verb.";
    EXTENDER_DECISIONS = "penstock_extender_decisions_total", "Decisions by verb and reason: for filter and preempt one for each node, for bind one for each pod.";
    EXTENDER_BAD_REQUESTS = "penstock_extender_bad_requests_total", "Requests that could not be understood, by verb.";
    EXTENDER_PACKED = "penstock_extender_packed", "What pods hold or were promised of all GPUs, by resource: encoder units, percent of the SMs, blocks of 256 MiB, and MPS clients.";
    EXTENDER_FREE = "penstock_extender_free", "What is free of all GPUs, by resource, as in penstock_extender_packed.";
    EXTENDER_FRAGMENTATION = "penstock_extender_fragmentation_ratio", "Share of all GPUs that is free but of no use to the pods that come, 0 to 1, every resource weighed with its scarcity.";
    EXTENDER_KNOWLEDGE_AGE = "penstock_extender_knowledge_age_seconds", "Seconds since a watch of the API server last worked, by what is watched; 0 while it works.";

    MATCHMAKER_PLAYERS = "penstock_matchmaker_players", "Players connected to this matchmaker, playing or waiting.";
    MATCHMAKER_QUEUE = "penstock_matchmaker_queue_length", "Players that wait for a streamer.";
    MATCHMAKER_STREAMERS = "penstock_matchmaker_streamers", "Streamers known, by state.";
    MATCHMAKER_CLAIMS = "penstock_matchmaker_claims_total", "Claims made on streamers by what became of them.";
    MATCHMAKER_BAD_MESSAGES = "penstock_matchmaker_bad_messages_total", "Messages of pages that could not be understood.";
    MATCHMAKER_REFUSED = "penstock_matchmaker_refused_total", "Requests, connections and pages that were refused, by reason: who asks (anonymous, credentials, link, rights), from where (origin), or how much (connections, players, attempts, messages, listeners).";
    MATCHMAKER_WAIT = "penstock_matchmaker_wait_seconds", "How long players waited for a free streamer: those who came, and those who lost theirs since they did; without viewers and those who came back.";

    MATCHMAKER_DEMAND = "penstock_matchmaker_streamers_taken", "Places for players that are taken, a busy streamer counted as full; those of streamers that drain left out.";
    MATCHMAKER_CAPACITY = "penstock_matchmaker_streamer_capacity", "Places for players on the streamers known, those that drain left out.";

    EARLIER_PLAYERS = "matchmaker_player_socket_connections", "Players connected to this matchmaker, playing or waiting.";
    EARLIER_QUEUE = "matchmaker_player_queue_count", "Players that wait at this matchmaker for a streamer.";
    EARLIER_AVAILABLE = "matchmaker_streamer_available_count", "Streamers that are free.";
    EARLIER_STREAMERS = "matchmaker_streamer_connections", "Streamers known, in whatever state.";
    EARLIER_DEMAND_RATIO = "matchmaker_streamer_demand_ratio", "Places taken and players that wait at this matchmaker, for each place for a player on streamers that do not drain; where there is none, as if there were one.";
    EARLIER_STREAM_PLAYERS = "signalserver_player_socket_connections", "Players and viewers connected to this streamer.";
    EARLIER_STREAM_CONNECTIONS = "signalserver_stream_socket_connections", "Streams of this streamer: 1 once its application shows a picture, else 0.";
    EARLIER_STREAM_OPEN = "signalserver_stream_socket_open_indicator", "Whether this streamer has a stream: 1 or 0.";
    EARLIER_STREAM_FREE = "signalserver_free_stream_indicator", "Whether this streamer takes a player: 1 or 0.";

    TURN_ALLOCATIONS = "penstock_turn_allocations", "Allocations alive.";
    TURN_RECEIVED_BYTES = "penstock_turn_received_bytes_total", "Bytes received by side (client, peer).";
    TURN_RECEIVED_PACKETS = "penstock_turn_received_packets_total", "Packets received by side (client, peer).";
    TURN_RELAYED_BYTES = "penstock_turn_relayed_bytes_total", "Bytes of payload relayed by direction (to_peer, to_client).";
    TURN_RELAYED_PACKETS = "penstock_turn_relayed_packets_total", "Packets relayed by direction (to_peer, to_client).";
    TURN_XDP_PACKETS = "penstock_turn_xdp_packets_total", "Packets relayed by network drivers (XDP) by direction; the relayed packets include them.";
    TURN_DROPPED_PACKETS = "penstock_turn_dropped_packets_total", "Packets dropped by direction (to_peer, to_client) and reason.";
    TURN_REQUESTS = "penstock_turn_requests_total", "Requests by method and by class of the answer.";
    TURN_CONNECTIONS = "penstock_turn_connections", "Connections of clients over TCP and TLS.";
    TURN_CONNECTIONS_ENDED = "penstock_turn_connections_ended_total", "Connections of clients that ended by reason.";
    TURN_HANDLING_SECONDS = "penstock_turn_handling_seconds", "Time from a shard's waking up until all that had come in was passed on; one round in 64.";
    TURN_AUTH_FAILURES = "penstock_turn_auth_failures_total", "Requests that failed authentication by reason.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_known_unlike_and_of_prometheus_form() {
        let names: BTreeSet<_> = ALL.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), ALL.len());
        for metric in ALL {
            // Ours, or what dashboards and autoscalers of an earlier deployment know.
            let ours = ["penstock_", "matchmaker_", "signalserver_"];
            let is_known = ours.iter().any(|prefix| metric.name.starts_with(prefix));
            assert!(is_known, "{}", metric.name);
            assert!(
                metric.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{}",
                metric.name
            );
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
