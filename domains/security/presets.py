"""Specifications of the public sets of network flows, as their authors name the columns."""

from pathlib import Path

from core.errors import UserError
from core.openers import read_json, read_yaml
from domains.security.specification import FlowSpecification, near


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _each(stem: str, endings: str) -> tuple[str, ...]:
    return tuple(f"{stem} {ending}" for ending in endings.split())


_NSL_KDD = _words(
    "duration protocol_type service flag src_bytes dst_bytes land wrong_fragment urgent hot"
    " num_failed_logins logged_in num_compromised root_shell su_attempted num_root"
    " num_file_creations num_shells num_access_files num_outbound_cmds is_host_login"
    " is_guest_login count srv_count serror_rate srv_serror_rate rerror_rate srv_rerror_rate"
    " same_srv_rate diff_srv_rate srv_diff_host_rate dst_host_count dst_host_srv_count"
    " dst_host_same_srv_rate dst_host_diff_srv_rate dst_host_same_src_port_rate"
    " dst_host_srv_diff_host_rate dst_host_serror_rate dst_host_srv_serror_rate"
    " dst_host_rerror_rate dst_host_srv_rerror_rate"
)
_NSL_KDD_LEVELS = _words("protocol_type service flag land logged_in is_host_login is_guest_login")

NSL_KDD = FlowSpecification(
    numeric=tuple(name for name in _NSL_KDD if name not in _NSL_KDD_LEVELS),
    categorical=_NSL_KDD_LEVELS,
    label="class",
    benign="normal",
    header=(*_NSL_KDD, "class", "difficulty"),
    drop=("difficulty",),
    classes={
        "dos": _words(
            "back land neptune pod smurf teardrop apache2 mailbomb processtable udpstorm"
        ),
        "probe": _words("ipsweep nmap portsweep satan mscan saint"),
        "r2l": _words(
            "ftp_write guess_passwd imap multihop phf spy warezclient warezmaster named sendmail"
            " snmpgetattack snmpguess worm xlock xsnoop"
        ),
        "u2r": _words("buffer_overflow loadmodule perl rootkit httptunnel ps sqlattack xterm"),
    },
)
"""NSL-KDD (Tavallaee et al., 2009): no header; the difficulty tells what learners got right."""

UNSW_NB15 = FlowSpecification(
    numeric=_words(
        "dur spkts dpkts sbytes dbytes rate sttl dttl sload dload sloss dloss sinpkt dinpkt sjit"
        " djit swin stcpb dtcpb dwin tcprtt synack ackdat smean dmean trans_depth"
        " response_body_len ct_srv_src ct_state_ttl ct_dst_ltm ct_src_dport_ltm ct_dst_sport_ltm"
        " ct_dst_src_ltm ct_ftp_cmd ct_flw_http_mthd ct_src_ltm ct_srv_dst"
    ),
    categorical=_words("proto service state is_ftp_login is_sm_ips_ports"),
    label="attack_cat",
    benign="Normal",
    drop=("id", "label"),
)
"""UNSW-NB15 (Moustafa and Slay, 2015), the training and testing partitions with a header."""

CSE_CIC_IDS2018 = FlowSpecification(
    numeric=(
        *("Flow Duration", "Tot Fwd Pkts", "Tot Bwd Pkts", "TotLen Fwd Pkts", "TotLen Bwd Pkts"),
        *_each("Fwd Pkt Len", "Max Min Mean Std"),
        *_each("Bwd Pkt Len", "Max Min Mean Std"),
        *("Flow Byts/s", "Flow Pkts/s"),
        *_each("Flow IAT", "Mean Std Max Min"),
        *_each("Fwd IAT", "Tot Mean Std Max Min"),
        *_each("Bwd IAT", "Tot Mean Std Max Min"),
        *("Fwd Header Len", "Bwd Header Len", "Fwd Pkts/s", "Bwd Pkts/s"),
        *_each("Pkt Len", "Min Max Mean Std Var"),
        *("Down/Up Ratio", "Pkt Size Avg", "Fwd Seg Size Avg", "Bwd Seg Size Avg"),
        *("Fwd Byts/b Avg", "Fwd Pkts/b Avg", "Fwd Blk Rate Avg"),
        *("Bwd Byts/b Avg", "Bwd Pkts/b Avg", "Bwd Blk Rate Avg"),
        *("Subflow Fwd Pkts", "Subflow Fwd Byts", "Subflow Bwd Pkts", "Subflow Bwd Byts"),
        *("Init Fwd Win Byts", "Init Bwd Win Byts", "Fwd Act Data Pkts", "Fwd Seg Size Min"),
        *_each("Active", "Mean Std Max Min"),
        *_each("Idle", "Mean Std Max Min"),
    ),
    categorical=(
        *("Dst Port", "Protocol"),
        *("Fwd PSH Flags", "Bwd PSH Flags", "Fwd URG Flags", "Bwd URG Flags"),
        *(f"{flag} Flag Cnt" for flag in _words("FIN SYN RST PSH ACK URG ECE")),
        "CWE Flag Count",
    ),
    label="Label",
    benign="Benign",
    drop=("Timestamp", "Flow ID", "Src IP", "Src Port", "Dst IP"),
    time="Timestamp",
    source="Src IP",
    destination="Dst IP",
)
"""CSE-CIC-IDS2018 (Sharafaldin et al., 2018), CICFlowMeter's short names; hosts where given."""

CIC_IDS2017 = FlowSpecification(
    numeric=(
        *("Flow Duration", "Total Fwd Packets", "Total Backward Packets"),
        *("Total Length of Fwd Packets", "Total Length of Bwd Packets"),
        *_each("Fwd Packet Length", "Max Min Mean Std"),
        *_each("Bwd Packet Length", "Max Min Mean Std"),
        *("Flow Bytes/s", "Flow Packets/s"),
        *_each("Flow IAT", "Mean Std Max Min"),
        *_each("Fwd IAT", "Total Mean Std Max Min"),
        *_each("Bwd IAT", "Total Mean Std Max Min"),
        *("Fwd Header Length", "Bwd Header Length", "Fwd Packets/s", "Bwd Packets/s"),
        *("Min Packet Length", "Max Packet Length"),
        *_each("Packet Length", "Mean Std Variance"),
        *("Down/Up Ratio", "Average Packet Size"),
        *("Avg Fwd Segment Size", "Avg Bwd Segment Size"),
        *("Fwd Avg Bytes/Bulk", "Fwd Avg Packets/Bulk", "Fwd Avg Bulk Rate"),
        *("Bwd Avg Bytes/Bulk", "Bwd Avg Packets/Bulk", "Bwd Avg Bulk Rate"),
        *("Subflow Fwd Packets", "Subflow Fwd Bytes"),
        *("Subflow Bwd Packets", "Subflow Bwd Bytes"),
        *("Init_Win_bytes_forward", "Init_Win_bytes_backward"),
        *("act_data_pkt_fwd", "min_seg_size_forward"),
        *_each("Active", "Mean Std Max Min"),
        *_each("Idle", "Mean Std Max Min"),
    ),
    categorical=(
        "Destination Port",
        *("Fwd PSH Flags", "Bwd PSH Flags", "Fwd URG Flags", "Bwd URG Flags"),
        *(f"{flag} Flag Count" for flag in _words("FIN SYN RST PSH ACK URG CWE ECE")),
    ),
    label="Label",
    benign="BENIGN",
    encoding="cp1252",
    drop=(
        *("Fwd Header Length.1", "Flow ID", "Source IP", "Source Port", "Destination IP"),
        *("Protocol", "Timestamp"),
    ),
    time="Timestamp",
    source="Source IP",
    destination="Destination IP",
)
"""CIC-IDS2017 (Sharafaldin et al., 2018), CICFlowMeter's long names; a header length stands twice
and the names of web attacks have a dash of cp1252."""

NETFLOW_V2 = FlowSpecification(
    numeric=_words(
        "IN_BYTES IN_PKTS OUT_BYTES OUT_PKTS FLOW_DURATION_MILLISECONDS DURATION_IN DURATION_OUT"
        " MIN_TTL MAX_TTL LONGEST_FLOW_PKT SHORTEST_FLOW_PKT MIN_IP_PKT_LEN MAX_IP_PKT_LEN"
        " SRC_TO_DST_SECOND_BYTES DST_TO_SRC_SECOND_BYTES RETRANSMITTED_IN_BYTES"
        " RETRANSMITTED_IN_PKTS RETRANSMITTED_OUT_BYTES RETRANSMITTED_OUT_PKTS"
        " SRC_TO_DST_AVG_THROUGHPUT DST_TO_SRC_AVG_THROUGHPUT NUM_PKTS_UP_TO_128_BYTES"
        " NUM_PKTS_128_TO_256_BYTES NUM_PKTS_256_TO_512_BYTES NUM_PKTS_512_TO_1024_BYTES"
        " NUM_PKTS_1024_TO_1514_BYTES TCP_WIN_MAX_IN TCP_WIN_MAX_OUT"
    ),
    categorical=_words(
        "CLIENT_TCP_FLAGS L4_SRC_PORT TCP_FLAGS ICMP_IPV4_TYPE ICMP_TYPE PROTOCOL"
        " SERVER_TCP_FLAGS L4_DST_PORT L7_PROTO"
    ),
    label="Attack",
    benign="Benign",
    drop=_words(
        "IPV4_SRC_ADDR IPV4_DST_ADDR DNS_QUERY_ID DNS_QUERY_TYPE DNS_TTL_ANSWER"
        " FTP_COMMAND_RET_CODE Label"
    ),
    source="IPV4_SRC_ADDR",
    destination="IPV4_DST_ADDR",
)
"""NetFlow, second version of the unified fields (Sarhan et al., 2022): NF-UNSW-NB15-v2, NF-CSE-...,
with the fields of FlowTransformer (Manocchio et al., 2024)."""

PRESETS = {
    "nsl_kdd": NSL_KDD,
    "unsw_nb15": UNSW_NB15,
    "cse_cic_ids2018": CSE_CIC_IDS2018,
    "cic_ids2017": CIC_IDS2017,
    "netflow_v2": NETFLOW_V2,
}
"""By the names that a configuration gives them."""


def find_specification(name: str) -> FlowSpecification:
    """Give a preset by its name, or read a YAML or JSON file.

    Raises:
        UserError: if there is no such preset or file, naming the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        raise UserError(
            f"--data.specification={name}: there is no such preset{near(name, PRESETS)}; there are"
            f" {', '.join(PRESETS)}, or name a .yaml file"
        )
    read = read_json if path.suffix.lower() == ".json" else read_yaml
    return FlowSpecification.from_json(read(path), str(path))
