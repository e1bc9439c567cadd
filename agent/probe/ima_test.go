package probe

import "testing"

// FuzzMeasurements reads lists as the kernel writes them and as it never would.
func FuzzMeasurements(f *testing.F) {
	entry := "\x0a\x00\x00\x00aaaaaaaaaaaaaaaaaaaa\x07\x00\x00\x00ima-sig\x3b\x00\x00\x00\x28\x00\x00\x00sha256:\x00aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x07\x00\x00\x00/bin/a\x00\x00\x00\x00\x00"
	f.Add([]byte(entry))
	f.Add([]byte(entry + entry))
	f.Add([]byte(entry[:40]))
	f.Add([]byte("\x0a\x00\x00\x00aaaaaaaaaaaaaaaaaaaa\xff\xff\xff\xff"))
	if list, err := parseMeasurements([]byte(entry + entry)); err != nil || len(list) != 2 || list[0].Path != "/bin/a" || len(list[0].Digest) != 64 {
		f.Fatalf("%+v %v", list, err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseMeasurements(b)
		if err == nil && len(b) > 0 && len(list) == 0 {
			t.Fatal("bytes became nothing")
		}
	})
}

// FuzzUevent reads messages of the kernel.
func FuzzUevent(f *testing.F) {
	f.Add([]byte("add@/devices/pci0000:00/0000:00:04.0/usb1/1-1\x00ACTION=add\x00SUBSYSTEM=usb\x00SEQNUM=7\x00"))
	f.Add([]byte("libudev\x00\xfe\xed"))
	f.Add([]byte("change@\x00SYNTH_UUID=0\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, ok := parseUevent(b); ok && len(e.Action)+len(e.Path)+len(e.Subsystem) > 512 {
			t.Fatalf("%+v", e)
		}
	})
}

// FuzzKernelRecords reads what Docker and /proc say.
func FuzzKernelRecords(f *testing.F) {
	f.Add("1405b58f I------     2 perm 1f0b0000     0     0 keyring   .builtin_trusted_keys: 1\n")
	f.Add("cpu  1 2 3 4 5 6 7 8 9 10\n")
	f.Add("00000000-00ffffff : Kernel rodata\n")
	f.Fuzz(func(t *testing.T, s string) {
		parseKeyrings([]byte(s))
		_, _, _ = parseCPUTime(s)
		_, _, _ = parseKernel([]byte(s), "Kernel rodata", 1<<30)
		describedKey(s)
	})
}
