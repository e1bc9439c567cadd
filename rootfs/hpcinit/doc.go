// Package hpcinit is the first minute of the PC: from the kernel's hand-over in
// the initramfs to systemd in a verified root with the agent running beside it.
// cmd/hpc-init calls Run as PID 1; nobody else may.
//
// Every step ends in a stage line on the console or in a typed reason and a
// restart of the machine. There is no shell and nothing is asked of the PC's
// clock, which nobody vouches for.
package hpcinit

import "portcullis/rootfs/boot"

// Stages, in the order in which they normally end; "modules" runs beside the
// ones that follow it.
const (
	StageInit       = "init"
	StageModules    = "modules"
	StageNetwork    = "network"
	StageManifest   = "manifest"
	StageRoot       = "root"
	StageVerity     = "verity"
	StageAgent      = "agent"
	StageSwitchRoot = "switch-root"
)

// Reasons of failures, beside those of package boot and of package manifest.
const (
	ReasonTrustFile   boot.Reason = "trust-file"   // /etc/portcullis/trust.json cannot be used
	ReasonNoInterface boot.Reason = "no-interface" // no wired interface appeared
	ReasonNoCarrier   boot.Reason = "no-carrier"   // none of them has a cable to somebody
	ReasonNoLease     boot.Reason = "no-lease"     // nobody offered a valid lease with a boot session
	ReasonAddress     boot.Reason = "address"      // the kernel refused the leased address or route
	ReasonFetch       boot.Reason = "fetch-failed" // the transfer broke too often
	ReasonFetchTime   boot.Reason = "fetch-time"   // the transfer took too long
	ReasonRefused     boot.Reason = "http-refused" // the gateway answered that it will not give the file
	ReasonHTTP        boot.Reason = "http-answer"  // an answer that is not plain HTTP/1.1, or not what was asked for
	ReasonSize        boot.Reason = "size-differs" // the file on the gateway has another length than the manifest says
	ReasonChunk       boot.Reason = "chunk-digest" // a chunk is wrong twice
	ReasonRootHash    boot.Reason = "root-hash"    // manifest and signed command line name different roots
	ReasonBootNote    boot.Reason = "boot-note"    // the note for the agent could not be written
	ReasonAgent       boot.Reason = "agent-start"  // the agent could not be started
)
