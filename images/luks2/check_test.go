package luks2

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// forge puts metadata into both copies with right checksums: what somebody with the
// card in hand can do.
func forge(t testing.TB, text []byte) memory {
	t.Helper()
	d := make(memory, smallSize)
	b := binaryHeader{Version: 2, Size: HeaderSize, Sequence: 7}
	copy(b.Algorithm[:], "sha256")
	check(t, writeCopies(d, b, text, false, zeros{}))
	return d
}

// change replaces one text in the JSON of a good header; it must be there.
func change(t testing.TB, text []byte, old, new string) []byte {
	t.Helper()
	if bytes.Count(text, []byte(old)) < 1 {
		t.Fatalf("%s is not in %s", old, text)
	}
	return bytes.Replace(text, []byte(old), []byte(new), 1)
}

// twoSlots is the JSON of a volume with keyslots 0 (pbkdf2) and 1 (argon2id), and
// tokens 0 and 1.
func twoSlots(t testing.TB) []byte {
	t.Helper()
	d, h, key := small(t)
	must[int](t)(h.AddSlot(d, key, []byte("second"), cheap))
	must[int](t)(h.SetToken(-1, token("other", 1, "y")))
	check(t, h.Write(d))
	return h.JSON()
}

func TestHostileMetadata(t *testing.T) {
	good := twoSlots(t)
	if _, _, err := Read(forge(t, good), smallSize); err != nil {
		t.Fatalf("unchanged: %v", err)
	}
	long := strings.Repeat("9", 4000)
	for name, c := range map[string]struct {
		old, new string
		want     Reason
	}{
		"empty":                        {string(good), "", ReasonMetadata},
		"no object":                    {string(good), "[]", ReasonMetadata},
		"cut off":                      {`"config":`, `"config"`, ReasonMetadata},
		"something behind":             {`"keyslots_size":"1015808"}}`, `"keyslots_size":"1015808"}}{}`, ReasonMetadata},
		"space in front":               {`{"keyslots":{"0"`, ` {"keyslots":{"0"`, ReasonMetadata},
		"section missing":              {`"digests":`, `"digest":`, ReasonMetadata},
		"section twice":                {`"config":`, `"tokens":{},"config":`, ReasonMetadata},
		"section twice, other case":    {`"config":`, `"Keyslots":{},"config":`, ReasonMetadata},
		"section in capitals":          {`"segments":`, `"SEGMENTS":`, ReasonMetadata},
		"section null":                 {`"tokens":{`, `"tokens":null,"x":{`, ReasonMetadata},
		"nested too deep":              {`"data":"x"`, `"data":` + strings.Repeat("[", 40) + strings.Repeat("]", 40), ReasonMetadata},
		"keyslot twice":                {`"keyslots":{"0":`, `"keyslots":{"0":{},"0":`, ReasonMetadata},
		"keyslot -1":                   {`"keyslots":{"0":`, `"keyslots":{"-1":`, ReasonMetadata},
		"keyslot 32":                   {`"keyslots":{"0":`, `"keyslots":{"32":`, ReasonMetadata},
		"keyslot 00":                   {`"keyslots":{"0":`, `"keyslots":{"00":`, ReasonMetadata},
		"keyslot with huge number":     {`"keyslots":{"0":`, `"keyslots":{"` + long + `":`, ReasonMetadata},
		"keyslot of other type":        {`"type":"luks2"`, `"type":"luks3"`, ReasonUnsupported},
		"keyslot of a re-encryption":   {`"type":"luks2"`, `"type":"reencrypt"`, ReasonUnfinished},
		"keyslot with unknown field":   {`"type":"luks2"`, `"type":"luks2","more":1`, ReasonMetadata},
		"field twice":                  {`"type":"luks2"`, `"type":"luks2","type":"luks2"`, ReasonMetadata},
		"field in other case":          {`"key_size":64`, `"Key_size":64`, ReasonMetadata},
		"key size 0":                   {`"key_size":64`, `"key_size":0`, ReasonUnsupported},
		"key size negative":            {`"key_size":64`, `"key_size":-64`, ReasonUnsupported},
		"key size huge":                {`"key_size":64`, `"key_size":` + long, ReasonMetadata},
		"key size 2^62":                {`"key_size":64`, `"key_size":4611686018427387904`, ReasonUnsupported},
		"key size fraction":            {`"key_size":64`, `"key_size":64.5`, ReasonMetadata},
		"key size text":                {`"key_size":64`, `"key_size":"64"`, ReasonMetadata},
		"key size null":                {`"key_size":64`, `"key_size":null`, ReasonUnsupported},
		"stripes 1":                    {`"stripes":4000`, `"stripes":1`, ReasonMetadata},
		"stripes huge":                 {`"stripes":4000`, `"stripes":4000000000`, ReasonMetadata},
		"splitter hash":                {`"stripes":4000,"hash":"sha256"`, `"stripes":4000,"hash":"md5"`, ReasonUnsupported},
		"area null":                    {`"area":{"type":"raw"`, `"area":null,"x":{"type":"raw"`, ReasonMetadata},
		"area type":                    {`"type":"raw"`, `"type":"datashift"`, ReasonUnsupported},
		"area in the header":           {`"offset":"32768"`, `"offset":"28672"`, ReasonMetadata},
		"area over the end":            {`"offset":"32768"`, `"offset":"1044480"`, ReasonMetadata},
		"area offset overflows":        {`"offset":"32768"`, `"offset":"9223372036854771712"`, ReasonMetadata},
		"area offset too large":        {`"offset":"32768"`, `"offset":"18446744073709551615"`, ReasonMetadata},
		"area offset negative":         {`"offset":"32768"`, `"offset":"-4096"`, ReasonMetadata},
		"area offset a number":         {`"offset":"32768"`, `"offset":32768`, ReasonMetadata},
		"area offset octal":            {`"offset":"32768"`, `"offset":"032768"`, ReasonMetadata},
		"area offset empty":            {`"offset":"32768"`, `"offset":""`, ReasonMetadata},
		"area offset escaped":          {`"offset":"32768"`, `"offset":"3276\u0038"`, ReasonMetadata},
		"area offset not aligned":      {`"offset":"32768"`, `"offset":"33280"`, ReasonMetadata},
		"areas overlap":                {`"offset":"32768"`, `"offset":"36864"`, ReasonMetadata},
		"areas the same":               {`"offset":"32768"`, `"offset":"290816"`, ReasonMetadata},
		"area size 0":                  {`"size":"258048"`, `"size":"0"`, ReasonMetadata},
		"area too small":               {`"size":"258048"`, `"size":"253952"`, ReasonMetadata},
		"area size huge":               {`"size":"258048"`, `"size":"9223372036854775296"`, ReasonMetadata},
		"area cipher":                  {`"size":"258048","encryption":"aes-xts-plain64"`, `"size":"258048","encryption":"cipher_null-ecb"`, ReasonUnsupported},
		"priority":                     {`"type":"luks2"`, `"type":"luks2","priority":3`, ReasonMetadata},
		"kdf":                          {`"kdf":{"type":"pbkdf2"`, `"kdf":{"type":"none"`, ReasonUnsupported},
		"kdf hash":                     {`"kdf":{"type":"pbkdf2","hash":"sha256"`, `"kdf":{"type":"pbkdf2","hash":"crc32"`, ReasonUnsupported},
		"no iterations":                {`"hash":"sha256","iterations":1000,"salt"`, `"hash":"sha256","iterations":0,"salt"`, ReasonMetadata},
		"iterations negative":          {`"hash":"sha256","iterations":1000,"salt"`, `"hash":"sha256","iterations":-1,"salt"`, ReasonMetadata},
		"iterations 2^40":              {`"hash":"sha256","iterations":1000,"salt"`, `"hash":"sha256","iterations":1099511627776,"salt"`, ReasonMetadata},
		"salt missing":                 {`"iterations":1000,"salt":`, `"iterations":1000,"sugar":`, ReasonMetadata},
		"salt empty":                   {`"iterations":1000,"salt":"`, `"iterations":1000,"salt":"","x":"`, ReasonMetadata},
		"salt is no base64":            {`"iterations":1000,"salt":"`, `"iterations":1000,"salt":"!`, ReasonMetadata},
		"salt of a kilobyte":           {`"iterations":1000,"salt":"`, `"iterations":1000,"salt":"` + strings.Repeat("AAAA", 300), ReasonMetadata},
		"argon2 time 0":                {`"time":1`, `"time":0`, ReasonMetadata},
		"argon2 memory 0":              {`"memory":64`, `"memory":0`, ReasonMetadata},
		"argon2 memory 4 TiB":          {`"memory":64`, `"memory":4294967296`, ReasonMetadata},
		"argon2 lanes 0":               {`"cpus":1`, `"cpus":0`, ReasonMetadata},
		"argon2 lanes 256":             {`"cpus":1`, `"cpus":256`, ReasonMetadata},
		"argon2 lanes over memory":     {`"cpus":1`, `"cpus":9`, ReasonMetadata},
		"pbkdf2 with memory":           {`"hash":"sha256","iterations":1000,"salt"`, `"hash":"sha256","iterations":1000,"memory":64,"salt"`, ReasonMetadata},
		"no segment":                   {`"segments":{"0":`, `"segments":{"1":`, ReasonUnsupported},
		"two segments":                 {`"segments":{`, `"segments":{"1":{"type":"crypt","offset":"1048576","size":"4096","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":4096},`, ReasonUnsupported},
		"linear segment":               {`"type":"crypt"`, `"type":"linear"`, ReasonUnsupported},
		"segment with integrity":       {`"type":"crypt"`, `"integrity":{"type":"hmac(sha256)"},"type":"crypt"`, ReasonMetadata},
		"segment flags":                {`"type":"crypt"`, `"flags":["backup-final"],"type":"crypt"`, ReasonUnsupported},
		"segment cipher":               {`"encryption":"aes-xts-plain64","sector_size"`, `"encryption":"null-ecb","sector_size"`, ReasonUnsupported},
		"sector size 0":                {`"sector_size":4096`, `"sector_size":0`, ReasonMetadata},
		"sector size 513":              {`"sector_size":4096`, `"sector_size":513`, ReasonMetadata},
		"sector size 8192":             {`"sector_size":4096`, `"sector_size":8192`, ReasonMetadata},
		"segment inside the keyslots":  {`"offset":"1048576"`, `"offset":"1044480"`, ReasonMetadata},
		"segment not aligned":          {`"offset":"1048576"`, `"offset":"1049088"`, ReasonMetadata},
		"segment behind the device":    {`"offset":"1048576"`, `"offset":"1114112"`, ReasonSize},
		"segment offset overflows":     {`"offset":"1048576"`, `"offset":"9223372036854771712"`, ReasonMetadata},
		"segment size 0":               {`"size":"dynamic"`, `"size":"0"`, ReasonMetadata},
		"segment size not whole":       {`"size":"dynamic"`, `"size":"4097"`, ReasonMetadata},
		"segment larger than device":   {`"size":"dynamic"`, `"size":"1048576"`, ReasonSize},
		"segment size huge":            {`"size":"dynamic"`, `"size":"` + long + `"`, ReasonMetadata},
		"segment size Dynamic":         {`"size":"dynamic"`, `"size":"Dynamic"`, ReasonMetadata},
		"iv_tweak negative":            {`"iv_tweak":"0"`, `"iv_tweak":"-1"`, ReasonMetadata},
		"iv_tweak missing":             {`"iv_tweak":"0",`, ``, ReasonMetadata},
		"no digest":                    {`"digests":{"0":`, `"digests":{"x":`, ReasonMetadata},
		"digest type":                  {`"digests":{"0":{"type":"pbkdf2"`, `"digests":{"0":{"type":"sha256"`, ReasonUnsupported},
		"digest hash":                  {`"segments":["0"],"hash":"sha256"`, `"segments":["0"],"hash":"crc32"`, ReasonUnsupported},
		"digest of nothing":            {`"digest":"`, `"digest":"","x":"`, ReasonMetadata},
		"digest empty":                 {`"segments":["0"],`, `"segments":[],`, ReasonMetadata},
		"digest names segment twice":   {`"segments":["0"],`, `"segments":["0","0"],`, ReasonMetadata},
		"digest names no segment":      {`"segments":["0"],`, `"segments":["1"],`, ReasonMetadata},
		"digest names missing keyslot": {`"keyslots":["0","1"]`, `"keyslots":["0","1","2"]`, ReasonMetadata},
		"digest names keyslot twice":   {`"keyslots":["0","1"]`, `"keyslots":["0","1","1"]`, ReasonMetadata},
		"digest names keyslot 2^32":    {`"keyslots":["0","1"]`, `"keyslots":["0","4294967297"]`, ReasonMetadata},
		"keyslot without digest":       {`"keyslots":["0","1"]`, `"keyslots":["0"]`, ReasonMetadata},
		"token 32":                     {`"tokens":{"0":`, `"tokens":{"32":`, ReasonMetadata},
		"token without type":           {`"type":"test"`, `"typ":"test"`, ReasonMetadata},
		"token with type null":         {`"type":"test"`, `"type":null`, ReasonMetadata},
		"token with second type":       {`"type":"test"`, `"type":"test","Type":"other"`, ReasonMetadata},
		"token with long-s keyslots":   {`"type":"test"`, `"type":"test","keyſlots":["1"]`, ReasonMetadata},
		"token without keyslots":       {`"type":"test","keyslots":["0"]`, `"type":"test"`, ReasonMetadata},
		"token for missing keyslot":    {`"type":"test","keyslots":["0"]`, `"type":"test","keyslots":["5"]`, ReasonMetadata},
		"token is no object":           {`"tokens":{"0":`, `"tokens":{"5":[],"0":`, ReasonMetadata},
		"json_size":                    {`"json_size":"12288"`, `"json_size":"16384"`, ReasonMetadata},
		"keyslots_size not aligned":    {`"keyslots_size":"1015808"`, `"keyslots_size":"1015809"`, ReasonMetadata},
		"keyslots_size huge":           {`"keyslots_size":"1015808"`, `"keyslots_size":"9223372036854771712"`, ReasonMetadata},
		"keyslots_size too small":      {`"keyslots_size":"1015808"`, `"keyslots_size":"258048"`, ReasonMetadata},
		"requirement":                  {`"json_size":`, `"requirements":{"mandatory":["opal"]},"json_size":`, ReasonRequirement},
		"requirement as a list":        {`"json_size":`, `"requirements":["inline-hw-tags"],"json_size":`, ReasonRequirement},
		"requirement, re-encryption":   {`"json_size":`, `"requirements":{"mandatory":["online-reencrypt-v2"]},"json_size":`, ReasonUnfinished},
		"requirement of another shape": {`"json_size":`, `"requirements":{"mandatory":"x"},"json_size":`, ReasonMetadata},
		"requirement, other case":      {`"json_size":`, `"Requirements":{"mandatory":["opal"]},"json_size":`, ReasonMetadata},
		"requirement, unknown section": {`"json_size":`, `"requirements":{"optional":["x"]},"json_size":`, ReasonMetadata},
	} {
		text := change(t, good, c.old, c.new)
		_, _, err := Read(forge(t, text), smallSize)
		if ReasonOf(err) != c.want {
			t.Errorf("%s: %v, not %s", name, err, c.want)
		}
	}
	for name, c := range map[string][2]string{
		"empty requirements": {`"json_size":`, `"requirements":{},"json_size":`},
		"flags":              {`"json_size":`, `"flags":["allow-discards"],"json_size":`},
		"segment of a size":  {`"size":"dynamic"`, `"size":"4096"`},
		"priority":           {`"type":"luks2"`, `"type":"luks2","priority":2`},
	} {
		if _, _, err := Read(forge(t, change(t, good, c[0], c[1])), smallSize); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a keyslot may cost is looked at before the memory is taken.
func TestExpensiveKeyslotIsRefused(t *testing.T) {
	good := twoSlots(t)
	for name, c := range map[string][2]string{
		"memory over 1 GiB": {`"memory":64`, `"memory":1048577`},
		"2 TiB":             {`"memory":64`, `"memory":2147483647`},
		"passes":            {`"time":1`, `"time":2147483647`},
	} {
		d := forge(t, change(t, good, c[0], c[1]))
		h, _, err := Read(d, smallSize)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, _, err := h.Unlock(d, []byte("second")); ReasonOf(err) != ReasonCost {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := h.Unlock(d, []byte("second"), 1); ReasonOf(err) != ReasonCost {
			t.Errorf("%s: %v", name, err)
		}
	}
	d := forge(t, change(t, good, `"hash":"sha256","iterations":1000,"salt"`, `"hash":"sha256","iterations":2147483647,"salt"`))
	h, _, err := Read(d, smallSize)
	check(t, err)
	if _, _, err := h.Unlock(d, chipPass, 0); ReasonOf(err) != ReasonCost {
		t.Error(err)
	}
	// A limit of the caller's, and another slot that opens in spite of it.
	d2, h2, key := small(t)
	must[int](t)(h2.AddSlot(d2, key, []byte("second"), cheap))
	check(t, h2.Write(d2))
	h2.Limits.Memory = 32
	if _, _, err := h2.Unlock(d2, []byte("second")); ReasonOf(err) != ReasonCost {
		t.Error(err)
	}
	if _, _, err := h2.Unlock(d2, chipPass); err != nil {
		t.Error(err)
	}
	if _, err := h2.AddSlot(d2, key, []byte("third"), ForPeople()); ReasonOf(err) != ReasonCost {
		t.Error(err)
	}
}

func TestReadFindsTheNewestCopy(t *testing.T) {
	good, _, _ := small(t)
	for name, c := range map[string]struct {
		damage             func(d memory)
		primary, secondary CopyState
		want               Reason
		token              string
	}{
		"both good":          {func(memory) {}, CopyGood, CopyGood, "", "x"},
		"primary gone":       {func(d memory) { clear(d[:HeaderSize]) }, CopyMissing, CopyGood, "", "x"},
		"primary bit flip":   {func(d memory) { d[6000] ^= 1 }, CopyDamaged, CopyGood, "", "x"},
		"primary size lies":  {func(d memory) { d[13] = 8 }, CopyDamaged, CopyGood, "", "x"},
		"primary version 1":  {func(d memory) { d[7] = 1 }, CopyDamaged, CopyGood, "", "x"},
		"secondary gone":     {func(d memory) { clear(d[HeaderSize : 2*HeaderSize]) }, CopyGood, CopyMissing, "", "x"},
		"secondary bit flip": {func(d memory) { d[HeaderSize+6000] ^= 1 }, CopyGood, CopyDamaged, "", "x"},
		"primary old":        {func(d memory) { older(t, d, 0) }, CopyOld, CopyGood, "", "x"},
		"secondary old":      {func(d memory) { older(t, d, HeaderSize) }, CopyGood, CopyOld, "", "x"},
		"same number, other content": {func(d memory) {
			h, _, err := Read(d, smallSize)
			check(t, err)
			check(t, writeCopy(d, h.bin, change(t, h.json, `"x"`, `"w"`), HeaderSize, zeros{}))
		}, CopyGood, CopyOld, "", "x"},
		"primary where the secondary belongs": {func(d memory) { copy(d[HeaderSize:], d[:HeaderSize]) }, CopyGood, CopyMissing, "", "x"},
		"secondary moved":                     {func(d memory) { copy(d[2*HeaderSize:], d[HeaderSize:2*HeaderSize]); clear(d[:2*HeaderSize]) }, "", "", ReasonBadHeader, ""},
		"zeros":                               {func(d memory) { clear(d) }, "", "", ReasonNoHeader, ""},
		"both damaged":                        {func(d memory) { d[6000]++; d[HeaderSize+6000]++ }, "", "", ReasonBadHeader, ""},
	} {
		d := memory(bytes.Clone(good))
		c.damage(d)
		h, health, err := Read(d, smallSize)
		if ReasonOf(err) != c.want || err == nil && (health != Health{c.primary, c.secondary} || !tokenIs(h, c.token)) {
			t.Errorf("%s: %v, %+v", name, err, health)
		}
	}
	for _, n := range []int64{0, 1, 511, 4095, 4096, HeaderSize, 2 * HeaderSize, smallOffset} {
		if _, _, err := Read(good[:n], n); err == nil {
			t.Errorf("read from a device of %d bytes", n)
		}
	}
}

func TestFormatRefusals(t *testing.T) {
	key := make([]byte, VolumeKeySize)
	for name, c := range map[string]struct {
		size int64
		o    Options
		key  []byte
		want Reason
	}{
		"short key":          {smallSize, Options{PayloadOffset: smallOffset}, key[:32], ReasonUsage},
		"offset":             {smallSize, Options{PayloadOffset: smallOffset + 512}, key, ReasonUsage},
		"offset negative":    {smallSize, Options{PayloadOffset: -smallOffset}, key, ReasonUsage},
		"device too small":   {smallOffset, Options{PayloadOffset: smallOffset}, key, ReasonSize},
		"device not sectors": {smallSize + 512, Options{PayloadOffset: smallOffset}, key, ReasonSize},
		"sector size":        {smallSize, Options{PayloadOffset: smallOffset, SectorSize: 8192}, key, ReasonMetadata},
		"UUID":               {smallSize, Options{PayloadOffset: smallOffset, UUID: "x"}, key, ReasonUsage},
		"label":              {smallSize, Options{PayloadOffset: smallOffset, Label: strings.Repeat("x", 48)}, key, ReasonUsage},
	} {
		d := make(memory, c.size)
		if _, err := Format(d, c.size, c.o, c.key); ReasonOf(err) != c.want || !bytes.Equal(d, make(memory, c.size)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d, h, volumeKey := small(t)
	for name, c := range map[string]struct {
		key, pass []byte
		kdf       KDF
		want      Reason
	}{
		"other volume's key":    {randomKey(t), chipPass, ForChip(), ReasonPassphrase},
		"no passphrase":         {volumeKey, nil, ForChip(), ReasonUsage},
		"passphrase too long":   {volumeKey, make([]byte, MaxPassphrase+1), ForChip(), ReasonUsage},
		"no KDF":                {volumeKey, chipPass, KDF{}, ReasonUsage},
		"KDF without numbers":   {volumeKey, chipPass, KDF{Type: "argon2id"}, ReasonUsage},
		"KDF over our own caps": {volumeKey, chipPass, KDF{Type: "argon2id", Time: 1, Lanes: 1, Memory: 2 << 20}, ReasonCost},
	} {
		before := bytes.Clone(d)
		if _, err := h.AddSlot(d, c.key, c.pass, c.kdf); ReasonOf(err) != c.want || !bytes.Equal(before, d) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The device of these tests is the one of the package's users.
var _ Device = (*os.File)(nil)
