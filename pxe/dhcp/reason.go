package dhcp

// Reason says why a packet was not answered. The same words stand in events,
// counters and documents.
type Reason string

// Reasons.
const (
	ReasonMalformed     Reason = "dhcp-malformed" // not decodable, no END, a field out of its range
	ReasonOversize      Reason = "dhcp-oversize"
	ReasonRogueServer   Reason = "rogue-server" // a server's message from somebody else, or a client that chose another server
	ReasonRelayed       Reason = "relayed"      // there is no relay on a cable
	ReasonHardware      Reason = "hardware-type"
	ReasonUnknownMAC    Reason = "unknown-mac"
	ReasonType          Reason = "message-type"      // none, or one that clients do not send
	ReasonClass         Reason = "class-unknown"     // neither firmware nor our own client
	ReasonArchMissing   Reason = "arch-missing"      // no option 93
	ReasonArchUnknown   Reason = "arch-unknown"      // none of its values is known
	ReasonArchUnfit     Reason = "arch-unsupported"  // known, but the image does not run there
	ReasonBIOS          Reason = "bios-not-allowed"  // pxe.allow_bios is off
	ReasonBIOSNoIPXE    Reason = "bios-without-ipxe" // a BIOS without iPXE cannot load a kernel over HTTP
	ReasonNoImage       Reason = "no-image"          // there is no valid image to boot
	ReasonNoSession     Reason = "no-session"        // this message does not open one and none is live
	ReasonOtherFirmware Reason = "session-other-firmware"
	ReasonSource        Reason = "source-address" // 4011 from somebody who does not hold the lease
	ReasonPort          Reason = "wrong-port"     // 4011 is for boot server requests only
	ReasonReplySize     Reason = "reply-too-long" // would not fit what the client can take
	ReasonDeclined      Reason = "address-declined"
	ReasonReleased      Reason = "released"
	ReasonRate          Reason = "dhcp-rate"
	ReasonQueue         Reason = "dhcp-queue" // the queue was full
	ReasonPanic         Reason = "dhcp-panic" // a bug of ours; the packet is lost, the service is not
	ReasonSend          Reason = "send-failed"
	ReasonLedger        Reason = "ledger-failed"
)

// Alarm tells whether a reason needs a person's attention: on a cable with one
// PC at its end it is no accident.
func (r Reason) Alarm() bool {
	switch r {
	case ReasonRogueServer, ReasonRelayed, ReasonUnknownMAC, ReasonDeclined, ReasonSource, ReasonPanic:
		return true
	}
	return false
}
