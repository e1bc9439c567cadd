package expect

// Reasons of findings, as they stand in logs and in docs/threat-model.md.
const (
	ReasonDigest    = "op-digest"    // the keyed digest is wrong: of other bytes, or of another question
	ReasonMalformed = "op-malformed" // the answer does not decode or passes a limit

	ReasonCmdline     = "boot-cmdline"      // not the signed command line
	ReasonKernel      = "boot-kernel"       // not the signed kernel: release or build notes differ
	ReasonLockdown    = "boot-lockdown"     // not integrity
	ReasonTainted     = "boot-tainted"      // a module was forced, unsigned or from outside
	ReasonTaintedInfo = "boot-tainted-info" // the kernel met a fault of the hardware or its own
	ReasonLSM         = "boot-lsm"          // a security module is missing, or the list is another than before
	ReasonKexec       = "boot-kexec"        // another kernel is loaded
	ReasonBootID      = "boot-id-changed"   // another boot answers within the session
	ReasonUptime      = "boot-uptime"       // the kernel's clock ran backwards
	ReasonTraced      = "boot-traced"       // a tracer or probe is on a kernel function
	ReasonHelper      = "boot-helper"       // the kernel starts another program than the image's by itself
	ReasonDoor        = "boot-door"         // modules, kexec, tracefs or debugfs where the signed kernel has none, or the other way round

	ReasonBlock  = "block-changed" // blocks of the root device are not the image's
	ReasonVerity = "block-verity"  // the verity table is not the signed one

	ReasonUnknownExecutable  = "procs-unknown-executable"  // code of a file that the image has not
	ReasonDeletedExecutable  = "procs-deleted-executable"  // code of a file that was deleted, or of a memfd
	ReasonForeignFilesystem  = "procs-foreign-filesystem"  // an image path, but on another file system: a mount covers it
	ReasonChangedFile        = "procs-changed-file"        // an image path, but copied up or of another size
	ReasonWritableExecutable = "procs-writable-executable" // a file's code can be written
	ReasonAnonymousCode      = "procs-anonymous-code"      // executable memory without a file
	ReasonTracedProcess      = "procs-traced"              // a debugger holds a process
	ReasonSecondAgent        = "procs-second-agent"        // the agent runs more than once
	ReasonMorePower          = "procs-more-power"          // a process may do more than the kernel could have given it
	ReasonUnknownProcess     = "procs-unknown-process"     // a process whose program the image has not
	ReasonMount              = "procs-mount-over-image"    // a mount covers files of the image
	ReasonNoRoot             = "procs-root"                // the root is not the overlay on the image
	ReasonTask               = "procs-task"                // a container runs programs of its approved image (info)
	ReasonTaskUnread         = "procs-task-unread"         // the agent still reads the container's image (info)
	ReasonVanished           = "procs-vanished"            // many processes ended while they were read (info)
	ReasonRestless           = "procs-restless"            // a process executes another program whenever it is read, and goes on

	ReasonPatchedCode = "pmem-patched-code" // a process has pages of its own where a file's code should be
	ReasonChangedCode = "pmem-changed-code" // memory differs from the file in the image
	ReasonUnknownCode = "pmem-unknown-code" // memory of a file that the image has not
	ReasonPick        = "pmem-pick"         // another page than the one asked for
	ReasonNoPages     = "pmem-missing"      // fewer pages than there must be

	ReasonModule        = "modules-unexpected" // loaded, and not in the image's list
	ReasonModuleChanged = "modules-changed"    // another build than the image's
	ReasonModuleTaint   = "modules-taint"      // forced, unsigned or from outside
	ReasonModuleHidden  = "modules-hidden"     // the kernel's two views disagree
	ReasonModuleText    = "modules-text"       // code of a module is not that of its file
	ReasonModulePlace   = "modules-place"      // a module is where none can be, or on another one
	ReasonModuleUnread  = "modules-unread"     // a loaded module whose code the agent does not read
	// ReasonModuleUnjudged (info): modules come, go or change so often that calls into them
	// cannot be judged.
	ReasonModuleUnjudged = "modules-unjudged"

	ReasonSecondInterface = "net-second-interface"     // network hardware beside the boot interface
	ReasonInterface       = "net-unexpected-interface" // a virtual interface of a kind that is not allowed
	ReasonNoInterface     = "net-boot-interface"       // the boot interface is gone
	ReasonMAC             = "net-mac-changed"          // its address is not the burnt-in one
	ReasonEnslaved        = "net-boot-enslaved"        // it was put into a bridge or bond
	ReasonPromiscuous     = "net-promiscuous"          // the boot interface receives what is not for it
	ReasonSniffer         = "net-sniffer"              // a socket that sees every frame, or every packet of a protocol
	ReasonRaw             = "net-raw"                  // a socket that sees all messages of ICMP (info)
	ReasonRoute           = "net-route"                // packets leave by another way than the gateway
	ReasonFilter          = "net-filter"               // a table or chain of the packet filter that nobody of the image makes
	ReasonFilterChanged   = "net-filter-changed"       // the rules of the packet filter are others than before (info)
	ReasonRadio           = "net-radio"                // Wi-Fi or Bluetooth
	ReasonListener        = "net-listener"             // something listens on an address of the link (info)
	ReasonIdleInterface   = "net-idle-interface"       // enrolled network hardware, down

	ReasonHwAdded   = "hw-added"   // a part that was not there at enrolment
	ReasonHwRemoved = "hw-removed" // a part that was there at enrolment
	ReasonHwChanged = "hw-changed" // another part in its place
	ReasonHwMemory  = "hw-memory"  // another size of memory
	ReasonHwLearned = "hw-learned" // found late in the first boot and added

	ReasonHwReview   = "hw-review"   // a drift that an operator should look at
	ReasonHwUnstable = "hw-unstable" // differs between the enrolling boots: no longer compared

	ReasonTpmMissing    = "tpm-missing"    // enrolled with a TPM, and none answers
	ReasonTpmFault      = "tpm-fault"      // the enrolled TPM answers and gives no quote
	ReasonTpmUnusable   = "tpm-unusable"   // there is a TPM that gives no quote; never enrolled
	ReasonTpmUnmeasured = "tpm-unmeasured" // not booted in a way that measures the image; never enrolled
	ReasonTpmIdentity   = "tpm-identity"   // another TPM than the enrolled one, or no keys of a TPM
	ReasonTpmQuote      = "tpm-quote"      // not signed by that TPM for this question
	ReasonTpmCredential = "tpm-credential" // its attestation key is not in the TPM of its endorsement key
	ReasonTpmRegister   = "tpm-register"   // a register is not what the image predicts
	ReasonTpmProgram    = "tpm-program"    // firmware loaded something beside the image
	ReasonTpmLog        = "tpm-log"        // the event log does not lead to the registers
	ReasonTpmFirmware   = "tpm-firmware"   // other firmware, option ROMs or Secure Boot state than enrolled
	ReasonTpmClock      = "tpm-clock"      // started anew within the session, or its clock went back
	ReasonTpmNotReset   = "tpm-not-reset"  // not started anew with this boot
	ReasonTpmIMA        = "tpm-ima"        // IMA's list does not lead to register 10

	ReasonTsmMissing     = "tsm-missing"       // enrolled as a confidential machine, and says it is none
	ReasonTsmFault       = "tsm-fault"         // the enrolled machine gives no report
	ReasonTsmUnusable    = "tsm-unusable"      // a report that cannot be judged; never enrolled
	ReasonTsmReport      = "tsm-report"        // not of the maker, not for this question, or of an unprotected machine
	ReasonTsmMeasurement = "tsm-measurement"   // launched with something else than enrolled for this image
	ReasonKrodata        = "krodata-changed"   // the kernel's read-only data is not the signed kernel's
	ReasonKrodataSealed  = "krodata-sealed"    // what it sealed at its start has changed since
	ReasonKrodataImage   = "krodata-not-image" // at enrolment: differs where no kernel does
	ReasonKrodataPlace   = "krodata-place"     // not at the address or of the size of the signed kernel
	ReasonIDT            = "krodata-idt"       // the interrupt table was moved, changed, or leads out of the kernel

	ReasonBPF          = "trace-bpf"         // an eBPF object of a kind that the image has no use for
	ReasonKeyAdded     = "trace-key-added"   // a key that the kernel believes and did not before
	ReasonKeyRemoved   = "trace-key-removed" // one that it no longer believes
	ReasonTraceTainted = "trace-tainted"     // a module was forced, unsigned or from outside

	ReasonFilesChanged = "files-changed" // a file of the image was written to, or has another owner or mode
	ReasonFilesAdded   = "files-added"   // a file that the image has not
	ReasonFilesContent = "files-content" // a piece of a file is not the image's, whatever its size and time
	ReasonFilesRemoved = "files-removed" // a directory lacks entries of the image

	ReasonClockSet   = "time-clock-set"   // the wall clock was set
	ReasonClockDrift = "time-clock-drift" // the PC's clock does not go as ours does
	ReasonSlow       = "time-slow"        // work takes many times as long as it once did
	ReasonSteal      = "time-stolen"      // a hypervisor takes processor time away

	ReasonNoise   = "noise-changed" // the memory that should hold noise holds something else
	ReasonNoNoise = "noise-none"    // there is not enough free memory for it

	ReasonContainerUnapproved = "container-unapproved" // of an image that is not approved
	ReasonContainerPrivileged = "container-privileged" // it has power over the machine
	ReasonContainerUnknown    = "container-unknown"    // the runtime does not know of it
	ReasonContainerImage      = "container-image"      // its image is not what its name says
	ReasonContainerWritten    = "container-written"    // it has written programs

	ReasonImaUnknown   = "ima-unknown"   // a file ran that the image has not
	ReasonImaChanged   = "ima-changed"   // a file of the image ran with another content
	ReasonImaTask      = "ima-task"      // a program of an approved container image ran (info)
	ReasonImaChain     = "ima-chain"     // the list is not the one that was told before
	ReasonImaProof     = "ima-proof"     // the list is not the one that the chip's register 10 holds
	ReasonImaHeld      = "ima-held"      // entries are held back longer than an honest agent does
	ReasonImaOff       = "ima-off"       // the kernel measures nothing
	ReasonImaViolation = "ima-violation" // files were written while they were measured

	ReasonUeventAdded   = "uevent-added"   // a device was plugged in
	ReasonUeventRemoved = "uevent-removed" // a device was pulled out
	ReasonUeventChain   = "uevent-chain"   // the events are not those that were told before
	ReasonUeventLost    = "uevent-lost"    // events were forgotten before they were asked for

	ReasonKtext      = "ktext-changed"   // kernel text differs from the reference
	ReasonKtextImage = "ktext-not-image" // at enrolment: kernel text differs from the signed kernel
	ReasonKtextPlace = "ktext-place"     // not at the address or of the size of the signed kernel
	ReasonKtextMask  = "ktext-mask"      // another mask was applied
)
