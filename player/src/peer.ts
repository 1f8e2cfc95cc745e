// What is followed of a peer connection.

/** Calls `pathChanged` when media may have taken another path, and `stands` whenever the connection's state changes. */
export function followPeer(connection: RTCPeerConnection, pathChanged: () => void, stands: () => void): void {
  // First of all, so that whatever a browser lacks below, a connection that fails is noticed.
  connection.addEventListener('connectionstatechange', stands);
  for (const { transport } of [...connection.getReceivers(), ...connection.getSenders()]) {
    // Older Firefox has transports without it.
    const ice = transport?.iceTransport as RTCIceTransport | undefined;
    ice?.addEventListener?.('selectedcandidatepairchange', pathChanged);
  }
}
