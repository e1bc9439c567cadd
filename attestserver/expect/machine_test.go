package expect_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/agent/probe"
	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
	"portcullis/images/manifest"
	"portcullis/images/modlist"
	"portcullis/images/modtext"
	"portcullis/images/modtext/modtest"
)

const (
	testCmdline = "roothash=00 nokaslr lockdown=integrity"
	testMAC     = "52:54:00:00:00:01"
	testSession = "abcdefghijklmnopqrstuvwxyz"
	textBase    = 0xffffffff81000000
	textPhys    = 0x1600000
	loadAddress = 0x400000
	testNoise   = 1 << 20
	testID      = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00"
	moduleDir   = "/usr/lib/modules/6.12.0-test/"
	moduleArea  = 0x8000
	bridgeID    = "0123456789abcdef0123456789abcdef01234567"
	tablesID    = "89abcdef0123456789abcdef0123456701234567"
)

// machine is a PC as recorded files, its signed image, and what the gateway keeps.
type machine struct {
	t        testing.TB
	dir      string
	host     probe.Host
	image    *protocol.Image
	state    *protocol.ImageState
	refs     memory
	twins    map[string]protocol.Expectation
	probes   map[string]protocol.Probe
	files    map[string][]byte // of the image
	text     []byte            // of the kernel, as signed
	rodata   []byte            // likewise
	idt      []byte            // the interrupt table
	bridge   []byte            // the text of the module that is loaded
	links    []protocol.Link
	nft      map[int][][]byte // messages by kind
	rules    []string
	stats    map[string]probe.FileStat
	contents map[string][]byte // of mapped files
	verity   protocol.Verity
	special  map[string]string
	bpf      []protocol.BPFObject
	keys     map[int][]string // by keyring
	events   chan []byte      // uevents
	uptime   time.Duration
	approved []string // containers
	without  []string // options that the signed kernel says it has not
	noFS     []string // file systems that the kernel does not know
	exe      func(link string) (string, error)
	step     time.Duration // by which the wall clock was set
	tsc      uint64        // kHz
	made     time.Time
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	return newMachineWith(t, true)
}

// newMachineWith makes a machine whose gateway approves testTask, or no container.
func newMachineWith(t testing.TB, tasks bool) *machine {
	t.Helper()
	return makeMachine(t, tasks, nil)
}

// newHardened makes a machine whose kernel has neither modules nor a tracer, kexec
// or static keys, and says so.
func newHardened(t testing.TB) *machine {
	t.Helper()
	m := makeMachine(t, true, []string{ktextmask.DebugFS, ktextmask.Ftrace, ktextmask.JumpLabels, ktextmask.Kexec, ktextmask.Modules})
	m.check(os.Remove(m.path("proc/modules")))
	m.check(os.RemoveAll(m.path("sys/module/bridge")))
	m.check(os.Remove(m.path("sys/kernel/kexec_loaded")))
	m.noFS = []string{"debugfs", "tracefs"}
	return m
}

func makeMachine(t testing.TB, tasks bool, without []string) *machine {
	t.Helper()
	m := &machine{t: t, without: without, dir: t.TempDir(), refs: memory{}, stats: map[string]probe.FileStat{}, contents: map[string][]byte{}, uptime: 20 * time.Second, tsc: 3_000_000,
		made: time.Unix(1700000000, 0), exe: os.Readlink, special: map[string]string{"lockdown": "none [integrity] confidentiality\n",
			"lsm": "lockdown,capability,landlock,yama,apparmor,tomoyo,bpf", secureBoot: "\x06\x00\x00\x00\x01"}}
	m.host = probe.Host{Proc: m.path("proc"), Sys: m.path("sys"), Dev: m.path("dev"), Mask: m.path("ktext.mask"), Root: m.path("live"), CTime: changed,
		Links:  func() ([]protocol.Link, error) { return slices.Clone(m.links), nil },
		NFT:    func(kind int) ([][]byte, error) { return m.nft[kind], nil },
		Rules:  func() ([]string, error) { return m.rules, nil },
		Verity: func(string) (protocol.Verity, error) { return m.verity, nil },
		Clocks: func() (raw, boot, wall int64, err error) {
			boot = m.uptime.Milliseconds()
			return m.uptime.Nanoseconds(), boot, m.made.UnixMilli() + boot + m.step.Milliseconds(), nil
		},
		Uptime: func() time.Duration { return m.uptime },
		TSC:    func() uint64 { return m.tsc },
		Stat:   m.stat,
		Exe:    func(link string) (string, error) { return m.exe(link) },
		Content: func(link string) (io.ReadCloser, error) {
			rel, err := filepath.Rel(m.host.Proc, link)
			if b, ok := m.contents[rel]; ok && err == nil {
				return io.NopCloser(bytes.NewReader(b)), nil
			}
			return nil, fs.ErrNotExist
		},
		BPF:  func() ([]protocol.BPFObject, error) { return slices.Clone(m.bpf), nil },
		Keys: func(serial int) ([]string, error) { return slices.Clone(m.keys[serial]), nil },
		Uevents: func() (func() ([]byte, error), error) {
			c := make(chan []byte)
			m.events = c
			t.Cleanup(func() { close(c) })
			return func() ([]byte, error) {
				b, ok := <-c
				if !ok {
					return nil, fs.ErrClosed
				}
				return b, nil
			}, nil
		},
		Special: func(fstype, name string) ([]byte, error) {
			if slices.Contains(m.noFS, fstype) {
				return nil, unix.ENODEV
			}
			if s, ok := m.special[name]; ok {
				return []byte(s), nil
			}
			return nil, fs.ErrNotExist
		},
		SpecialDir: func(fstype, name string) (list []string, err error) {
			if slices.Contains(m.noFS, fstype) {
				return nil, unix.ENODEV
			}
			for s := range m.special {
				if rest, ok := strings.CutPrefix(s, name+"/"); ok {
					list = append(list, path.Dir(rest))
				}
			}
			slices.Sort(list)
			return slices.Compact(list), nil
		},
	}
	if tasks {
		m.approved = []string{testTask}
	}
	m.build()
	m.boot()
	m.twins, m.probes = map[string]protocol.Expectation{}, map[string]protocol.Probe{}
	all, err := expect.Options{Noise: testNoise, Containers: m.approved}.All(m.image)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		m.twins[e.Name()] = e
		t.Cleanup(func() { e.(interface{ Close() error }).Close() })
	}
	m.startAgent()
	return m
}

// startAgent makes the probes anew: a mask is read once.
func (m *machine) startAgent() {
	for _, p := range probe.All(m.host) {
		m.probes[p.Name()] = p
	}
}

func (m *machine) path(parts ...string) string {
	return filepath.Join(append([]string{m.dir}, parts...)...)
}

func (m *machine) stat(link string) (probe.FileStat, error) {
	rel, err := filepath.Rel(m.host.Proc, link)
	if err != nil {
		return probe.FileStat{}, err
	}
	if st, ok := m.stats[rel]; ok {
		return st, nil
	}
	return probe.FileStat{}, fs.ErrNotExist
}

// build makes the signed image.
func (m *machine) build() {
	r := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	m.files = map[string][]byte{"/usr/lib/systemd/systemd": random(300_000), "/usr/bin/dockerd": random(1_000_001),
		"/usr/lib/libc.so.6": random(70_000), "/etc/machine-id": []byte("x\n"), "/etc/passwd": []byte("root\n"), "/usr/bin/su": random(5000),
		"/usr/sbin/runc": random(20_000), "/usr/sbin/dockerd": slices.Concat(random(1<<20), packed(dockerCheck), random(9000))}
	m.text = random(2*protocol.KtextGranule + 0x1000)
	copy(m.text[100:], []byte{0x0f, 0x1f, 0x44, 0, 0})
	mask := m.mask()
	file, err := mask.Encode()
	m.check(err)
	m.files[expect.MaskPath] = file
	m.rodata = random(40*protocol.KtextGranule - 100)
	m.write(bzImage(append(bytes.Clone(m.text), m.rodata...), len(m.text)+len(m.rodata)), manifest.Kernel)
	m.write(file, "ktext.mask")
	list, dep := "", ""
	for i := range spareModules {
		list += spare(i) + " " + tablesID + "\n"
		dep += "kernel/lib/" + spare(i) + ".ko:\n"
		m.files[moduleDir+"kernel/lib/"+spare(i)+".ko"] = modtest.Tables()
	}
	m.files[modlist.Path] = []byte("# portcullis modules v1: name build-id\nbridge " + bridgeID + "\n" + list + "tables " + tablesID + "\n")
	m.files[modtext.Path] = modtest.Exports
	m.files[moduleDir+"modules.dep"] = []byte("kernel/net/bridge.ko:\nkernel/lib/tables.ko:\n" + dep)
	m.files[moduleDir+"kernel/net/bridge.ko"] = modtest.Module("")
	m.files[moduleDir+"kernel/lib/tables.ko"] = modtest.Tables()
	for p, b := range m.files {
		at := m.path("tree", p)
		m.write(b, "tree", p)
		if p == "/usr/bin/su" {
			m.check(os.Chmod(at, 0o755|fs.ModeSetuid))
		}
		m.check(os.Chtimes(at, m.made, m.made))
		m.write(b, "live", p)
		if p == "/usr/bin/su" {
			m.check(os.Chmod(m.path("live", p), 0o755|fs.ModeSetuid))
		}
		m.check(os.Chtimes(m.path("live", p), m.made, m.made))
	}
	for _, root := range []string{"tree/root", "live/root"} {
		m.check(os.MkdirAll(m.path(root), 0o700))
	}
	m.squash()
	sum := sha256.Sum256(file)
	m.image = &protocol.Image{Dir: m.dir, Digest: sha256.Sum256([]byte("image")), Manifest: &manifest.Manifest{
		Cmdline: testCmdline, Verity: manifest.Verity{RootHash: "aa", Salt: "bb", DataBlocks: 5, HashStart: 5},
		Mask: manifest.KernelTextMask{Total: int64(len(m.text)), SHA256: hex.EncodeToString(sum[:])},
	}}
	m.state = &protocol.ImageState{Image: m.image, Session: testSession, MAC: testMAC, Address: "10.77.0.2",
		CPUClass: "cpu", Notes: map[string][]byte{}}
}

// squashed are the root images: all machines with the same kernel have the same.
var squashed = map[string][]byte{}

func (m *machine) squash() {
	kernel := strings.Join(m.without, " ")
	if squashed[kernel] != nil {
		m.write(squashed[kernel], "root.img")
		return
	}
	out, err := exec.Command("mksquashfs", m.path("tree"), m.path("root.img"), "-comp", "zstd", "-b", "128K", "-noappend", "-all-root", "-quiet", "-no-progress").CombinedOutput()
	if err != nil {
		m.t.Fatalf("mksquashfs (package squashfs-tools): %v\n%s", err, out)
	}
	squashed[kernel], err = os.ReadFile(m.path("root.img"))
	m.check(err)
}

// boot writes what an honest machine shows.
func (m *machine) boot() {
	m.write([]byte(testCmdline+"\n"), "proc/cmdline")
	m.write([]byte("6.12.0-test\n"), "proc/sys/kernel/osrelease")
	m.write([]byte("11111111-2222-3333-4444-555555555555\n"), "proc/sys/kernel/random/boot_id")
	m.write([]byte("0\n"), "proc/sys/kernel/tainted")
	for name, value := range map[string]string{protocol.HelperCore: "core", protocol.HelperModprobe: "/sbin/modprobe", protocol.HelperPoweroff: "/sbin/poweroff"} {
		m.write([]byte(value+"\n"), "proc/sys/kernel", name)
	}
	m.write([]byte("notes"), "sys/kernel/notes")
	m.write([]byte("0\n"), "sys/kernel/kexec_loaded")
	m.write([]byte("bridge 300000 0 - Live 0xffffffffc0000000\n"), "proc/modules")
	m.module("bridge", bridgeID)
	m.section("bridge", ".text", modtest.TextAt)
	for _, name := range []string{".data", "__patchable_function_entries", "__mcount_loc", ".static_call_sites", ".smp_locks", ".return_sites", ".retpoline_sites",
		".call_sites", ".ibt_endbr_seal", ".altinstructions", "__jump_table"} {
		m.section("bridge", name, modtest.DataAt)
	}
	m.bridge = modtest.Text("")
	m.write([]byte("MemTotal:        1000000 kB\nMemAvailable:     800000 kB\n"), "proc/meminfo")
	m.write([]byte("processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 6\nmodel\t\t: 6\nstepping\t: 3\nmicrocode\t: 0x1\nflags\t\t: fpu sse\nbugs\t\t: none\nmodel name\t: Test CPU\n\nprocessor\t: 1\n"), "proc/cpuinfo")
	m.write([]byte("0x1af4\n"), "sys/bus/pci/devices/0000:00:03.0/vendor")
	m.write([]byte("QEMU\n"), "sys/class/dmi/id/sys_vendor")
	m.check(os.MkdirAll(m.path("sys/firmware/efi"), 0o755))
	m.check(os.MkdirAll(m.path("sys/module/nf_tables"), 0o755))
	m.nft = map[int][][]byte{}
	m.table(unix.AF_INET, "nat")
	m.chain(unix.AF_INET, "nat", "OUTPUT", 3, -100)
	m.rule(unix.AF_INET, "nat", "OUTPUT", "counter", "\x01")
	m.write([]byte("Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\neth0\t00000000\t01004D0A\t0003\t0\t0\t0\t00000000\t0\t0\t0\neth0\t00004D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"), "proc/net/route")
	m.write([]byte("cpu  100 0 100 5000 0 0 0 0 0 0\n"), "proc/stat")
	m.mounts("0 0 0:26 / / rw - overlay root rw\n23 1 0:22 / /proc rw - proc proc rw\n")
	m.process(1, "systemd", "/usr/lib/systemd/systemd", m.files["/usr/lib/systemd/systemd"])
	m.process(300, "dockerd", "/usr/bin/dockerd", m.files["/usr/bin/dockerd"])
	m.agent(9, -1)
	m.write([]byte("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 12\n"), "proc/2/stat")
	m.write(nil, "proc/2/maps")
	m.write([]byte("1405b58f I------     2 perm 1f0b0000     0     0 keyring   .builtin_trusted_keys: 1\n38715bc3 I--Q---     1 perm 3f030000     0     0 keyring   _ses: 1\n"), "proc/keys")
	m.keys = map[int][]string{0x1405b58f: {"asymmetric;Build time autogenerated kernel key: 13"}}
	m.bpf = []protocol.BPFObject{{Kind: protocol.BPFProgram, ID: 17, Type: 15, Tag: "40ddf486530245f5", Name: "sd_devices"},
		{Kind: protocol.BPFProgram, ID: 18, Type: 8, Tag: "6deef7357e7b4530", Name: "sd_fw_egress"}, {Kind: protocol.BPFMap, ID: 2, Type: 11}}
	m.nic("eth0", "0000:00:03.0")
	m.links = []protocol.Link{{Name: "lo", Index: 1, Loopback: true, Up: true},
		{Name: "eth0", Index: 2, MAC: testMAC, Permanent: testMAC, Up: true, Carrier: true}}
	m.special[imaList] = ""
	m.measured("boot_aggregate", nil)
	m.measured("/sysroot/usr/lib/systemd/systemd", m.files["/usr/lib/systemd/systemd"])
	m.measured("/usr/bin/dockerd", m.files["/usr/bin/dockerd"])
	m.idt = interrupts(textBase + 0x1230)
	m.kernel(m.text)
	m.check(os.MkdirAll(m.path("sys/block/dm-0/slaves/loop0"), 0o755))
	m.write([]byte("7:0\n"), "sys/block/loop0/dev")
	root, err := os.ReadFile(m.path("root.img"))
	m.check(err)
	m.write(root, "dev/loop0")
	m.verity = protocol.Verity{Device: "dm-0", Targets: 1, Target: "verity", Status: "V", ReadOnly: true, DataDev: "7:0", HashDev: "7:0",
		DataBlocks: 5, HashStart: 5, Algorithm: "sha256", RootHash: "aa", Salt: "bb"}
}

// uevent has the kernel tell of a device; it has arrived when this returns.
func (m *machine) uevent(action, path, subsystem string, more ...string) {
	lines := append([]string{action + "@" + path, "ACTION=" + action, "DEVPATH=" + path, "SUBSYSTEM=" + subsystem}, more...)
	m.events <- []byte(strings.Join(lines, "\x00") + "\x00")
	m.events <- nil // read after the one before was taken
}

func (m *machine) mounts(s string) { m.write([]byte(s), "proc/1/mountinfo") }

// process adds a process that has mapped content as the text of path.
func (m *machine) process(pid int, comm, path string, content []byte) {
	m.mapped(pid, comm, path, content, probe.FileStat{Size: int64(len(content)), CTime: m.made.UnixNano(), Inode: m.number(path), FSType: "overlay"}, "r-xp")
}

// ends has a process end when the link to its program has been read so often.
func (m *machine) ends(pid, reads int) {
	m.exe = func(link string) (string, error) {
		exe, err := os.Readlink(link)
		if strings.HasPrefix(link, m.path("proc", strconv.Itoa(pid))+"/") {
			if reads--; reads == 0 {
				maps.DeleteFunc(m.stats, func(link string, _ probe.FileStat) bool { return strings.HasPrefix(link, strconv.Itoa(pid)+"/") })
				m.check(os.RemoveAll(m.path("proc", strconv.Itoa(pid))))
			}
		}
		return exe, err
	}
}

func (m *machine) mapped(pid int, comm, path string, content []byte, st probe.FileStat, perms string) {
	m.t.Helper()
	dir := filepath.Join("proc", strconv.Itoa(pid))
	size := (len(content) + protocol.PageSize - 1) &^ (protocol.PageSize - 1)
	span := fmt.Sprintf("%x-%x", loadAddress, loadAddress+size)
	m.write(fmt.Appendf(nil, "%d (%s) S 1 0 0 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 %d\n", pid, comm, 100+pid), dir, "stat")
	m.write(fmt.Appendf(nil, "%s %s 00000000 00:1a %d %s\n7fff00000000-7fff00001000 r-xp 00000000 00:00 0                          [vdso]\n", span, perms, st.Inode, path), dir, "maps")
	m.link(path, dir, "exe")
	m.link("pid:[4026531836]", dir, "ns/pid")
	m.link("user:[4026531837]", dir, "ns/user")
	m.power(pid, 1000, 0, 0x1ff, 2, 1)
	m.write([]byte("0::/system.slice/x.service\n"), dir, "cgroup")
	m.link(path, dir, "map_files", span)
	m.stats[filepath.Join(strconv.Itoa(pid), "map_files", span)] = st
	m.contents[filepath.Join(strconv.Itoa(pid), "map_files", span)] = content
	f, err := os.Create(m.path(dir, "mem"))
	m.check(err)
	defer f.Close()
	m.pagemap(pid, size/protocol.PageSize, -1)
	_, err = f.WriteAt(content, loadAddress)
	m.check(err)
	m.check(f.Truncate(int64(loadAddress + size)))
}

// power writes what the kernel lets a process do.
func (m *machine) power(pid, uid int, caps, bounding uint64, seccomp, noNewPrivs int) {
	m.write(fmt.Appendf(nil, "Name:\tx\nTracerPid:\t0\nUid:\t%d\t%d\t%d\t%d\nCapPrm:\t%016x\nCapBnd:\t%016x\nNoNewPrivs:\t%d\nSeccomp:\t%d\n",
		uid, uid, uid, uid, caps, bounding, noNewPrivs, seccomp), "proc", strconv.Itoa(pid), "status")
}

// pagemap writes the page table of a process's only mapping: n pages of the
// file, but for one that is the process's own.
func (m *machine) pagemap(pid, n, own int) {
	b := make([]byte, 8*(loadAddress/protocol.PageSize+n))
	for i := range n {
		e := uint64(1<<63 | 1<<61)
		if i == own {
			e = 1 << 63
		}
		binary.LittleEndian.PutUint64(b[8*(loadAddress/protocol.PageSize+i):], e)
	}
	m.write(b, "proc", strconv.Itoa(pid), "pagemap")
}

// agent writes what the agent sees of itself: code, and then constants of n pages
// of which one is no longer the file's.
func (m *machine) agent(n, own int) {
	path := "/usr/lib/portcullis/hpc-agent"
	at := loadAddress + protocol.PageSize
	m.link(path, "proc/self/exe")
	m.write(fmt.Appendf(nil, "%x-%x r-xp 00000000 00:1a 764 %s\n%x-%x r--p 00001000 00:1a 764 %s\n%x-%x rw-p 00000000 00:00 0 \n",
		loadAddress, at, path, at, at+n*protocol.PageSize, path, at+n*protocol.PageSize, at+2*n*protocol.PageSize), "proc/self/maps")
	b := make([]byte, 8*(at/protocol.PageSize+2*n))
	for i := at / protocol.PageSize; i < len(b)/8; i++ { // what lies behind the constants is the agent's own
		e := uint64(1 << 63)
		if i < at/protocol.PageSize+n && i != at/protocol.PageSize+own {
			e |= 1 << 61
		}
		binary.LittleEndian.PutUint64(b[8*i:], e)
	}
	m.write(b, "proc/self/pagemap")
}

// number is the inode number of a file in the image.
func (m *machine) number(path string) uint64 {
	f, err := expect.InodeOf(m.path("root.img"), path)
	if err != nil {
		return 9999
	}
	return uint64(f)
}

// section says where a section of a module is.
func (m *machine) section(module, name string, at uint64) {
	m.write(fmt.Appendf(nil, "0x%016x\n", at), "sys/module", module, "sections", name)
}

func (m *machine) module(name, id string) {
	b, err := hex.DecodeString(id)
	m.check(err)
	note := append([]byte("\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00"), b...)
	m.write(note, "sys/module", name, "notes/.note.gnu.build-id")
	m.write([]byte("live\n"), "sys/module", name, "initstate")
}

func (m *machine) nic(name, bus string) {
	m.check(os.MkdirAll(m.path("sys/bus/pci/devices", bus), 0o755))
	m.link(m.path("sys/bus/pci/devices", bus), "sys/class/net", name, "device")
}

// measured has the kernel measure a file; nil stands for a digest of zeros.
func (m *machine) measured(path string, content []byte) (data []byte) {
	sum := sha256.Sum256(content)
	if content == nil {
		sum = [32]byte{}
	}
	field := func(b []byte, f ...byte) []byte {
		return append(binary.LittleEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	data = field(nil, append([]byte("sha256:\x00"), sum[:]...)...)
	data = field(field(data, append([]byte(path), 0)...))
	entry := append(binary.LittleEndian.AppendUint32(nil, 10), bytes.Repeat([]byte{1}, 20)...) // register, SHA-1
	m.special[imaList] += string(field(field(entry, []byte("ima-sig")...), data...))
	return data
}

// imaList is where the kernel shows it.
const imaList = "integrity/ima/binary_runtime_measurements_sha1"

// taskImage is the configuration of an approved image, testTask its id.
var (
	taskImage = taskConfig(layerOf(taskProgram))
	taskSum   = sha256.Sum256(taskImage)
	testTask  = hex.EncodeToString(taskSum[:])
)

// container lets a task of an image run; host is Docker's hostconfig.json.
func (m *machine) container(image, host string) {
	m.write([]byte("0::/system.slice/docker-"+testID+".scope\n"), "proc/300/cgroup")
	m.link("pid:[4026532222]", "proc/300/ns/pid")
	m.write([]byte(`{"Image":"sha256:`+image+`","Path":"/task","Args":["-x"],"MountPoints":{}}`), "proc/1/root/var/lib/docker/containers", testID, "config.v2.json")
	m.write([]byte(host), "proc/1/root/var/lib/docker/containers", testID, "hostconfig.json")
	m.write(taskImage, "proc/1/root/var/lib/docker/image/overlay2/imagedb/content/sha256", testTask)
	m.write([]byte(testID), "proc/1/root/var/lib/docker/image/overlay2/layerdb/mounts", testID, "mount-id")
	m.write([]byte("data"), "proc/1/root/var/lib/docker/overlay2", testID, "diff/out")
}

// changed is the time of change of a file of the running machine: what was not
// written to since has the time of the image, as squashfs shows it.
func changed(st *unix.Stat_t) int64 { return st.Mtim.Nano() }

func (m *machine) write(b []byte, parts ...string) {
	m.t.Helper()
	p := m.path(parts...)
	m.check(os.MkdirAll(filepath.Dir(p), 0o755))
	m.check(os.WriteFile(p, b, 0o644))
}

func (m *machine) link(to string, parts ...string) {
	m.t.Helper()
	p := m.path(parts...)
	m.check(os.MkdirAll(filepath.Dir(p), 0o755))
	if err := os.Remove(p); err != nil && !os.IsNotExist(err) {
		m.t.Fatal(err)
	}
	m.check(os.Symlink(to, p))
}

func (m *machine) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) remove(parts ...string) {
	m.t.Helper()
	m.check(os.RemoveAll(m.path(parts...)))
}

const secureBoot = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
